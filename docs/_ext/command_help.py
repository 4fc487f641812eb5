"""The directive ``command-help`` shows the help of each command of ``skdice`` in a section."""

import argparse
import os
from unittest.mock import patch

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from skdice.cli._arguments import build_parser


class CommandHelp(SphinxDirective):
    def run(self) -> list[nodes.Node]:
        parser = build_parser()
        (commands,) = (
            action.choices
            for action in parser._actions
            if isinstance(action, argparse._SubParsersAction)
        )
        lines: list[str] = []
        # argparse wraps the help at this width, which fits the column of a page.
        with patch.dict(os.environ, {"COLUMNS": "80", "NO_COLOR": "1"}):
            for name, command in {"skdice": parser, **commands}.items():
                title = name if command is parser else f"skdice {name}"
                text = (f"   {line}".rstrip() for line in command.format_help().splitlines())
                lines += [title, "~" * len(title), "", ".. code-block:: text", "", *text, ""]
        return self.parse_content_to_nodes_of(lines)

    def parse_content_to_nodes_of(self, lines: list[str]) -> list[nodes.Node]:
        container = nodes.section()
        container.document = self.state.document
        self.state.nested_parse(
            StringList(lines, source="skdice --help"),
            self.content_offset,
            container,
            match_titles=True,
        )
        return container.children


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("command-help", CommandHelp)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
