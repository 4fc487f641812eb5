"""Several detectors that score each block of rows together, so that every block is read once."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from skdice._compat.arrays import to_numpy
from skdice._engines.geometric import score_function
from skdice._engines.layer import FDBDLayer, ViMLayer
from skdice._engines.run import Engine, Options, choose, choose_for_cpu
from skdice._rows.sources import SlicedRows, scoring_dtype


@dataclass(frozen=True, eq=False)
class Member:
    """One of several detectors: a fitted layer, or the `score_samples` of another library.

    Parameters
    ----------
    name : str
        Name of the detector for messages.
    layer : layer of an engine or None
        What an engine computes; None where `score_samples` is given.
    device : str or None
        Where the layer is computed; see `Options`.
    score_samples : callable or None
        Function of a NumPy block of rows to their scores.
    """

    name: str
    layer: Any = None
    device: str | None = None
    score_samples: Callable[[NDArray[Any]], Any] | None = None


def run_together(
    members: Sequence[Member], options: Options, rows: SlicedRows
) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Yield the slice of each block of rows, and the values of all members, in order.

    Parameters
    ----------
    members : sequence of Member
        The detectors.
    options : Options
        What the user asked for; each member has a device of its own.
    rows : SlicedRows
        The rows.

    Yields
    ------
    row_slice : slice
        Rows of the block.
    values : ndarray of shape (n_samples, n_columns), float64
        Their scores, a column for each member. A layer with several values has as many columns.

    Raises
    ------
    ValueError
        A feature or a score is not finite; the message names the row and the member.
    """
    if not len(rows):  # an empty chunk of a Dask array
        return
    engines = _engines_of(members, rows, options)
    known = [engine for engine in engines if engine is not None]
    all_known = len(known) == len(members)
    native = all_known and all(engine.native for engine in known)
    slices = known[0].slices if known else rows.slices(options.batch_size)
    functions = [
        member.score_samples if engine is None else engine.compute
        for member, engine in zip(members, engines, strict=True)
    ]
    shared = {} if native else _sharing(members, scoring_dtype(rows.dtype))

    def score_block(block: Any) -> NDArray[np.float64]:
        columns: list[Any] = [None] * len(members)
        logits = None
        for n, score in shared.items():
            # These members need the product of the block with the same head.
            logits = _logits(members[n].layer, block) if logits is None else logits
            with np.errstate(all="ignore"):  # `check_values` reports an overflow with its row
                columns[n] = score(block, logits)
        for n, function in enumerate(functions):
            if n not in shared:
                columns[n] = cast(Callable[[Any], Any], function)(block)
        return np.column_stack(
            [
                each if member.layer is not None else _checked(each, len(block))
                for member, each in zip(members, map(_as_doubles, columns), strict=True)
            ]
        )

    blocks = rows.map_blocks(
        score_block,
        slices,
        native=native,
        # Detectors of other libraries need not be safe to call from several threads.
        n_threads=min(engine.n_threads for engine in known) if all_known else 1,
        description="scores",
        verbose=options.verbose,
    )
    try:
        for row_slice, values in blocks:
            for member, columns in zip(members, columns_of(members), strict=True):
                rows.check_values(values[:, columns], row_slice, f"score by {member.name!r}")
            yield row_slice, values
    finally:
        for engine in known:
            if engine.finish is not None:
                engine.finish()


def columns_of(members: Sequence[Member]) -> list[int | slice]:
    """Return the place of the values of each member among the columns: one, or several."""
    places: list[int | slice] = []
    start = 0
    for member in members:
        width = None if member.layer is None else member.layer.n_columns
        places.append(start if width is None else slice(start, start + width))
        start += width or 1
    return places


def _engines_of(
    members: Sequence[Member], rows: SlicedRows, options: Options
) -> list[Engine | None]:
    """Return the engine of each member, all for the same blocks; None for another library's."""

    def chosen(
        selector: Callable[[Any, SlicedRows, Options], Engine], options: Options
    ) -> list[Engine | None]:
        return [
            None
            if member.layer is None
            else selector(member.layer, rows, replace(options, device=member.device))
            for member in members
        ]

    selector: Callable[[Any, SlicedRows, Options], Engine] = choose
    engines = chosen(selector, options)
    if any(engine is None or not engine.native for engine in engines):
        # One of them needs NumPy's blocks, so all are given these.
        selector = choose_for_cpu
        engines = chosen(selector, options)
    sizes = {len(range(len(rows))[engine.slices[0]]) for engine in engines if engine is not None}
    if len(sizes) > 1:
        engines = chosen(selector, replace(options, batch_size=min(sizes)))
    return engines


def _sharing(
    members: Sequence[Member], dtype: np.dtype[Any]
) -> dict[int, Callable[[Any, Any], Any]]:
    """Return the functions of the members that need the logits of one unmasked head, by place.

    There are none if fewer than two members need them, or their heads are different objects.
    """
    chosen = {
        n: member.layer
        for n, member in enumerate(members)
        if isinstance(member.layer, FDBDLayer | ViMLayer)
    }
    heads = {(id(layer.weight), id(layer.bias)) for layer in chosen.values()}
    if len(chosen) < 2 or len(heads) > 1:
        return {}
    return {n: score_function(layer, dtype) for n, layer in chosen.items()}


def _logits(layer: FDBDLayer | ViMLayer, block: NDArray[Any]) -> NDArray[Any]:
    """Return the logits of the unmasked head of a layer."""
    with np.errstate(all="ignore"):  # `check_values` reports an overflow with its row
        logits: NDArray[Any] = block @ layer.weight.T.astype(block.dtype, copy=False)
        logits += layer.bias.astype(block.dtype, copy=False)
    return logits


def _as_doubles(values: Any) -> NDArray[np.float64]:
    return np.asarray(to_numpy(values), dtype=np.float64)


def _checked(scores: NDArray[np.float64], n_rows: int) -> NDArray[np.float64]:
    """Return the scores by a detector of another library; raise unless each row has one."""
    if scores.shape != (n_rows,):
        raise ValueError(f"score_samples returned shape {scores.shape}, expected ({n_rows},)")
    return scores
