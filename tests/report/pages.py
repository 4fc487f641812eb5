"""A page as a tree, by the parser of the standard library."""

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "link", "br", "hr", "img", "input"}


@dataclass
class Node:
    """An element: its name, attributes, and what it holds."""

    tag: str
    attributes: dict
    children: list = field(default_factory=list)

    def find_all(self, tag=None, **attributes):
        """Return the elements below this one with a name and with attributes of these values."""
        found = []
        for child in self.children:
            if isinstance(child, Node):
                if tag in (None, child.tag) and attributes.items() <= child.attributes.items():
                    found.append(child)
                found += child.find_all(tag, **attributes)
        return found

    def find(self, tag=None, **attributes):
        """Return the only such element."""
        (found,) = self.find_all(tag, **attributes)
        return found

    @property
    def text(self):
        """The text of this element and of those below, with single spaces."""
        parts = [child if isinstance(child, str) else child.text for child in self.children]
        return " ".join("".join(parts).split())

    def has_class(self, name):
        """Return whether the element has a class."""
        return name in self.attributes.get("class", "").split()

    def cells(self):
        """Return the texts of the cells of a table, row by row."""
        return [
            [cell.text for cell in row.children if isinstance(cell, Node)]
            for row in self.find_all("tr")
        ]


class _Parser(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open = [Node("document", {})]

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"<{tag}> has an attribute twice"
        node = Node(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_startendtag(self, tag, attrs):
        self.open[-1].children.append(Node(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag):
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data):
        self.open[-1].children.append(data)


def parse(text):
    """Return the tree of a page; raise if an element is not closed where it must be."""
    parser = _Parser()
    parser.feed(text)
    parser.close()
    assert len(parser.open) == 1, f"<{parser.open[-1].tag}> is not closed"
    return parser.open[0]
