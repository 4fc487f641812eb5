"""A source whose blocks go through a second function while they are computed."""

from collections.abc import Callable, Iterator
from typing import Any

from skdice._rows.sources import SlicedRows


class RowsBeside(SlicedRows):
    """Rows of another source, every block of which also goes through a function of its own.

    The function that is mapped over the rows does not know of it, and every block is read once.

    Parameters
    ----------
    source : SlicedRows
        The rows.
    function : callable
        Function of a block, as `map_blocks` gives it to the function that is mapped.

    Attributes
    ----------
    result : object
        What the function returned for the block that `map_blocks` yielded last.
    """

    def __init__(self, source: SlicedRows, function: Callable[[Any], Any]) -> None:
        self.source, self.function = source, function
        self.shape, self.dtype = source.shape, source.dtype
        self.namespace = source.namespace
        self.reads_in_threads, self.reads_ahead = source.reads_in_threads, source.reads_ahead
        self.result: Any = None

    def row_number(self, row: int) -> int | str:
        """Return the number under which the user knows a row."""
        return self.source.row_number(row)

    def native_block(self, row_slice: slice) -> Any:
        """Return rows as an array of their own library, dtype and device."""
        return self.source.native_block(row_slice)

    def map_blocks(
        self, function: Callable[[Any], Any], slices: list[slice], **options: Any
    ) -> Iterator[tuple[slice, Any]]:
        """Yield the slice and ``function(block)`` of each block of rows, in order."""

        def both(block: Any) -> tuple[Any, Any]:
            beside = self.function(block)  # first, because the other function may change the block
            return function(block), beside

        for row_slice, results in self.source.map_blocks(both, slices, **options):
            values, self.result = results
            yield row_slice, values

    def _read(self, start: int, stop: int) -> Any:
        return self.source[start:stop]
