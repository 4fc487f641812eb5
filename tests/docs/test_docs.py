"""What the documentation shows but the doctests do not run is right at least in its names.

The `>>>` blocks of README.rst and docs/ are run by pytest itself.
"""

import importlib
import re
import shlex
import textwrap
from pathlib import Path

import pytest

from skdice.cli._arguments import build_parser

pytest.importorskip("matplotlib")

ROOT = Path(__file__).parents[2]
PAGES = {
    str(page.relative_to(ROOT)): page.read_text(encoding="utf-8")
    for page in [
        ROOT / "README.rst",
        *sorted((ROOT / "docs").glob("*.rst")),
        *sorted((ROOT / "docs" / "user_guide").glob("*.rst")),
    ]
}


def indented_blocks(text: str, start: str) -> list[str]:
    """Return the indented blocks that follow the lines matching a pattern."""
    pattern = rf"(?m)^{start}$\n\n((?:(?:[ ]{{3,}}.*)?\n)+)"
    return [textwrap.dedent(each) for each in re.findall(pattern, text)]


def resolve(name: str) -> None:
    """Import the longest part of a dotted name that is a module and look up the rest."""
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:n]))
        except ModuleNotFoundError:
            continue
        for part in parts[n:]:
            found = getattr(found, part)
        return
    raise ModuleNotFoundError(name)


@pytest.mark.parametrize("page", PAGES)
def test_names_of_skdice_exist(page):
    names = set(re.findall(r"`(skdice(?:\.[A-Za-z_]\w*)+)", PAGES[page]))
    for name in names:
        resolve(name)


@pytest.mark.parametrize("page", PAGES)
def test_python_that_is_not_run_parses_and_imports_what_exists(page):
    for block in indented_blocks(PAGES[page], r"\.\. code-block:: python"):
        compile(block, page, "exec")
        for module, names in re.findall(r"from (skdice[\w.]*) import (.+)", block):
            for name in names.split(","):
                resolve(f"{module}.{name.strip()}")


@pytest.mark.parametrize("page", PAGES)
def test_command_lines_are_understood(page):
    text = PAGES[page]
    blocks = indented_blocks(text, r"(?:\.\. code-block:: shell|.*::)")
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    for line in lines:
        if line.strip().startswith("skdice "):
            # A variable of the shell, such as that of a loop, stands for a number.
            command = re.sub(r"\$\w+", "0", line.strip().split(" | ")[0])
            build_parser().parse_args(shlex.split(command)[1:])


@pytest.mark.parametrize("page", PAGES)
def test_lines_of_code_are_not_cut_off(page):
    """The column of a page holds 79 characters of code on a screen of 1,280 pixels."""
    session = re.findall(r"(?m)^ *((?:>>>|\.\.\.) .*)$", PAGES[page])
    # The README is read elsewhere, and its commands are to be copied as one line.
    blocks = r"\.\. code-block:: (?:python|shell)"
    listed = "\n".join(indented_blocks(PAGES[page], rf" *{blocks}")).splitlines()
    assert [line for line in [*session, *listed] if len(line) > 79] == []


def test_there_are_blocks_to_check():
    assert indented_blocks(PAGES["docs/user_guide/features_and_heads.rst"], r"\.\. code-block:: .*")
    assert indented_blocks(PAGES["README.rst"], "::")[0].startswith("skdice extract")
