"""The only loop over blocks of rows that computes logits or scores."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skdice._compat.arrays import namespace_of, to_numpy
from skdice._engines.choose import Options, choose
from skdice._engines.layer import LayerPath, MaskedLayer, values_dtype
from skdice._engines.logits import check_finite
from skdice._rows.sources import RowSource, SlicedRows


def run(
    layer: MaskedLayer | LayerPath, rows: SlicedRows, options: Options
) -> Iterator[tuple[slice, Any]]:
    """Yield the slice and the logits or scores of each block of rows, in order.

    Parameters
    ----------
    layer : MaskedLayer or LayerPath
        What is computed.
    rows : SlicedRows
        The rows.
    options : Options
        What the user asked for.

    Yields
    ------
    row_slice : slice
        Rows of the block.
    values : array
        Their values, on the device of the rows.

    Raises
    ------
    ValueError
        A feature or a value is not finite; the message names the row.
    """
    engine = choose(layer, rows, options)
    on_device: list[tuple[slice, Any]] = []
    blocks = rows.map_blocks(
        engine.compute,
        engine.slices,
        native=engine.native,
        validate=not engine.nonfinite_propagates,
        n_threads=engine.n_threads,
        description=f"{layer.values_name}, {engine.name}",
        verbose=options.verbose,
    )
    try:
        for row_slice, values in blocks:
            if isinstance(values, np.ndarray):
                check_finite(values, rows, row_slice, layer.values_name)
            else:
                xp = namespace_of(values)
                on_device.append((row_slice, xp.all(xp.isfinite(values))))
            yield row_slice, values
        # Each look at a result waits for the device, so all are looked at once, at the end.
        for row_slice, is_finite in on_device:
            if not bool(is_finite):
                values = to_numpy(engine.compute(rows.native_block(row_slice)))
                check_finite(values, rows, row_slice, layer.values_name)
    finally:
        engine.finish()


def collect(layer: MaskedLayer, rows: RowSource, options: Options) -> Any:
    """Return the logits or scores of all rows, as an array of the kind of the rows."""
    return rows.collect(partial(run, layer, options=options), values_dtype(rows), layer.n_columns)


def iterate_values(
    layer: MaskedLayer, rows: RowSource, options: Options
) -> Iterator[tuple[slice, NDArray[Any]]]:
    """Yield the slice and the logits or scores of each block as NumPy arrays, in order."""
    return rows.iterate_values(
        partial(run, layer, options=options), values_dtype(rows), layer.n_columns
    )
