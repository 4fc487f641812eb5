"""The ``skdice`` command."""

from skdice.cli._main import main

__all__ = ["main"]
