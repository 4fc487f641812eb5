"""The docstring of every public object follows the numpydoc standard."""

import importlib
import inspect

import pytest
from test_api_reference import public_names

validate = pytest.importorskip("numpydoc.validate").validate

# These checks of `numpydoc validate` do not hold, for the reasons given.
EXEMPT = {
    "ES01": "a summary that says all needs no extended summary",
    "EX01": "the examples of a class show its methods",
    "SA01": "the page of the reference lists related objects beside each other",
    "PR08": "a description may start with a formula or with code",
    "RT02": "a single result may have a name",
    "RT03": "a result whose type says all needs no description, such as self",
    "RT04": "a description may start with a formula or with code",
}


# Objects that are not functions or classes: the reference describes them by a comment.
CONSTANTS = {"skdice.metrics.neg_fpr95_scorer"}


def find_object(name: str) -> object:
    """Return the public object with a dotted name."""
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def public_objects() -> list[str]:
    """Return the public names, and the public methods and properties of public classes."""
    names = public_names()
    for name in sorted(names):
        cls = find_object(name)
        if inspect.isclass(cls):
            names |= {
                f"{name}.{member}"
                for member, value in inspect.getmembers(cls)
                if not member.startswith("_")
                # Methods that skdice inherits are documented where they are defined.
                and getattr(value, "fget", value).__class__.__name__ == "function"
                and getattr(value, "fget", value).__module__.startswith("skdice")
            }
    return sorted(names)


@pytest.mark.parametrize("name", sorted(set(public_objects()) - CONSTANTS))
def test_docstring_is_complete(name):
    errors = validate(name)["errors"]
    assert [(code, message) for code, message in errors if code not in EXEMPT] == []
