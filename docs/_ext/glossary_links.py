"""Terms of the glossary in docstrings become links in the site.

In a terminal a docstring says ``array-like or source of rows``, without markup.
"""

import re

from sphinx.application import Sphinx

PATTERN = re.compile(r"(?<![`\w])(array of the kind of X|source of rows)\b")


def link_terms(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    lines[:] = [PATTERN.sub(r":term:`\1`", line) for line in lines]


def setup(app: Sphinx) -> dict[str, bool]:
    app.setup_extension("sphinx.ext.autodoc")  # It defines the event.
    # numpydoc rewrites the lines at the priority 500, and must not meet the markup.
    app.connect("autodoc-process-docstring", link_terms, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
