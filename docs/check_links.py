"""Report every link of a built site that leads to a missing page or anchor of the site.

``python docs/check_links.py SITE`` prints the dead links and exits with 1 if there are any.
Links to other sites are the work of ``sphinx-build -b linkcheck``, which does not look at
anchors within the site.
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The anchors of a page and the addresses that it refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.addresses: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name == "id" or (name == "name" and tag == "a"):
                self.anchors.add(value or "")
            # A link in the head, such as to the next page, is not followed by a reader but by
            # the browser, and it must exist, too.
            elif name in ("href", "src") and value:
                self.addresses.add(value)


def dead_links(site: Path) -> list[str]:
    """Return a line for each dead link in the site: the page and the address."""
    pages = {
        path: Page(path.read_text(encoding="utf-8"))
        for path in sorted(site.rglob("*.html"))
        # The theme leaves a template there.
        if "_static" not in path.relative_to(site).parts
    }
    dead = []
    for path, page in pages.items():
        for address in sorted(page.addresses):
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target /= "index.html"
            anchor = unquote(parts.fragment)
            if not target.exists() or (
                anchor and target in pages and anchor not in pages[target].anchors
            ):
                dead.append(f"{path.relative_to(site)}: {address}")
    return dead


if __name__ == "__main__":
    found = dead_links(Path(sys.argv[1]).resolve())
    print(*found, f"{len(found)} dead links", sep="\n")
    sys.exit(bool(found))
