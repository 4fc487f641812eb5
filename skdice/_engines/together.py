"""Several detectors that score each block of rows together, so that every block is read once.

Members with the same head share what they can: the logits, the shaped features, and of a masked
head only what it prunes is computed, where that is faster. They share only the block, and nothing
of the computation, where all engines take arrays of another library or on a GPU as they are. The
same holds for the torch module of an ensemble, `skdice._engines.module.EnsembleModule`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from skdice._compat.arrays import to_numpy
from skdice._engines.activations import Clip, apply_shaping
from skdice._engines.dense import weights_in
from skdice._engines.kernels.fused import FUSED_SCORES, FusedScore, fused_scores
from skdice._engines.layer import (
    FDBDLayer,
    GeometricLayers,
    HeadLayers,
    MaskedLayer,
    NestedLayers,
    ViMLayer,
)
from skdice._engines.logits import score_logits
from skdice._engines.run import Engine, Options, choose, choose_for_cpu, summaries_for
from skdice._engines.summarized_geometry import SummarizedGeometry, geometric_function
from skdice._rows.sources import SlicedRows, scoring_dtype

# From a block of rows to the values by each of some members.
Compute = Callable[[Any], list[Any]]


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


@dataclass(frozen=True, eq=False)
class Group:
    """Members that are computed by one function.

    Parameters
    ----------
    places : tuple of int
        Their places among all members.
    layers : GeometricLayers, NestedLayers, HeadLayers or None
        How they share the computation; None for one member that shares nothing.
    """

    places: tuple[int, ...]
    layers: GeometricLayers | NestedLayers | HeadLayers | None = None


def groups_of(members: Sequence[Member]) -> tuple[Group, ...]:
    """Return the members in groups, each of which shares a part of the computation."""
    groups = []
    left = list(range(len(members)))
    while left:
        layer = members[left[0]].layer
        if isinstance(layer, FDBDLayer | ViMLayer):
            group = _geometric_group(members, left)
        elif isinstance(layer, MaskedLayer) and layer.is_portable and layer.score is not None:
            group = _nested_group(members, left)
        else:
            group = Group((left[0],))
        groups.append(group)
        left = [place for place in left if place not in group.places]
    return _joined(groups)


def _joined(groups: Sequence[Group]) -> tuple[Group, ...]:
    """Return the groups, of which two that multiply by the same weight are joined."""
    for one in groups:
        for other in groups:
            geometric, nested = one.layers, other.layers
            if not isinstance(geometric, GeometricLayers) or not isinstance(nested, NestedLayers):
                continue
            first = nested.layers[0]
            clips = isinstance(first.shaping, Clip) and first.shaping.low == -np.inf
            if clips and _is_equal(first.weight, geometric.weight):
                joined = Group(one.places + other.places, HeadLayers(geometric, nested))
                return (joined, *(group for group in groups if group not in (one, other)))
    return tuple(groups)


def _geometric_group(members: Sequence[Member], left: Sequence[int]) -> Group:
    """Return the first member, and those that look at the logits of the same head."""
    first = members[left[0]].layer
    places = tuple(
        place
        for place in left
        if isinstance(layer := members[place].layer, FDBDLayer | ViMLayer)
        and _is_equal(layer.weight, first.weight)
        and _is_equal(layer.bias, first.bias)
    )
    return Group(places, GeometricLayers(tuple(members[place].layer for place in places)))


def _nested_group(members: Sequence[Member], left: Sequence[int]) -> Group:
    """Return the first member, and those whose masked weights are nested with its own."""
    first = members[left[0]].layer
    alike = [
        place
        for place in left
        if isinstance(layer := members[place].layer, MaskedLayer)
        and isinstance(layer.score, str)
        and layer.shaping == first.shaping
        and _is_equal(layer.bias, first.bias)
    ]
    alike.sort(key=lambda place: -np.count_nonzero(members[place].layer.weight))
    whole = members[alike[0]].layer.weight
    pruned = {}
    for place in alike:
        layer = members[place].layer
        is_kept = layer.weight != 0
        if layer.weight.dtype == whole.dtype and (layer.weight == whole)[is_kept].all():
            weight = np.where(is_kept, whole.dtype.type(0), whole)
            pruned[place] = MaskedLayer(weight, np.zeros_like(layer.bias), score=None)
    if left[0] not in pruned or len(pruned) == 1:
        return Group((left[0],))
    layers = tuple(members[place].layer for place in pruned)
    return Group(tuple(pruned), NestedLayers(layers, tuple(pruned.values())[1:]))


def _is_equal(one: NDArray[Any], other: NDArray[Any]) -> bool:
    return one is other or (one.dtype == other.dtype and np.array_equal(one, other))


def run_together(
    members: Sequence[Member], groups: Sequence[Group], options: Options, rows: SlicedRows
) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Yield the slice of each block of rows, and the values of all members, in order.

    Parameters
    ----------
    members : sequence of Member
        The detectors.
    groups : sequence of Group
        Their groups, from `groups_of`.
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
    if native:
        groups = [Group((place,)) for place in range(len(members))]
    options = replace(options, batch_size=len(range(len(rows))[slices[0]]))
    functions = [
        (group.places, _function_of(group, members, engines, rows, options)) for group in groups
    ]

    def score_block(block: Any) -> NDArray[np.float64]:
        columns: list[Any] = [None] * len(members)
        for places, function in functions:
            for place, values in zip(places, function(block), strict=True):
                columns[place] = np.asarray(to_numpy(values), dtype=np.float64)
                if members[place].layer is None and columns[place].shape != (len(block),):
                    raise ValueError(
                        f"score_samples returned shape {columns[place].shape}, expected "
                        f"({len(block)},)"
                    )
        return np.column_stack(columns)

    blocks = rows.map_blocks(
        score_block,
        slices,
        native=native,
        # A feature that is not finite shows in the distance that fDBD divides by. A function of the
        # user must not see it.
        validate=not all_known
        or not any(isinstance(each.layer, FDBDLayer) for each in members)
        or not all(each.layer.is_portable for each in members),
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


def _function_of(
    group: Group,
    members: Sequence[Member],
    engines: Sequence[Engine | None],
    rows: SlicedRows,
    options: Options,
) -> Compute:
    """Return the function from a block to the values by each member of a group."""
    layers = group.layers
    if isinstance(layers, GeometricLayers):
        dtype = scoring_dtype(rows.dtype)
        return geometric_function(layers, dtype, summaries_for(layers, rows))
    if isinstance(layers, NestedLayers):
        return NestedFunction(layers, rows, options)
    if isinstance(layers, HeadLayers):
        return _head_function(layers, rows, options)
    (place,) = group.places
    engine, member = engines[place], members[place]
    function: Any = member.score_samples if engine is None else engine.compute
    return lambda block: [function(block)]


def _head_function(layers: HeadLayers, rows: SlicedRows, options: Options) -> Compute:
    """Return the function from a NumPy block to the values by all layers of one head.

    The logits of the clipped features come from those of the features, where that is faster.
    """
    summaries = summaries_for(layers.geometric, rows)
    geometric = geometric_function(layers.geometric, scoring_dtype(rows.dtype), summaries)
    nested = NestedFunction(layers.nested, rows, options)
    first = layers.nested.layers[0]
    if summaries is None or not isinstance(geometric, SummarizedGeometry):
        return lambda block: [*geometric(block), *nested(block)]
    dtype, high = summaries.dtype, cast(Clip, first.shaping).high
    transposed = first.packed_as(
        ("transposed", dtype), lambda weight, _: np.ascontiguousarray(weight.T, dtype)
    )

    def compute(block: NDArray[Any]) -> list[Any]:
        with np.errstate(over="ignore", invalid="ignore"):  # `check_values` reports it
            products = geometric.products(block)
            values = geometric.values(block, products)
            clipped, logits = summaries.clipped(block, high, transposed, products[0])
            return [*values, *nested.values(clipped, logits)]

    return compute


class NestedFunction:
    """A function from a NumPy block to the values by each of some nested layers.

    Where the weights that a layer prunes are so few that the sparse engine computes them in less
    time than any engine computes those that are left, they are subtracted from the logits of all
    weights. The sums have the same terms, so the rounding stays that of the logits.

    Parameters
    ----------
    nested : NestedLayers
        The layers.
    rows : SlicedRows
        The rows that will be scored.
    options : Options
        The options of the user.
    """

    def __init__(self, nested: NestedLayers, rows: SlicedRows, options: Options) -> None:
        dtype = scoring_dtype(rows.dtype)
        self._layers = nested.layers
        self._summaries = summaries_for(nested.layers[0], rows)
        first = nested.layers[0]
        self._weight, self._bias = weights_in(first, dtype)
        # From a block of shaped features to the logits that the pruned weights would add, by the
        # number of the layer.
        self._pruned: dict[int, Callable[[Any], Any]] = {}
        for n, layer in enumerate(nested.pruned, start=1):
            engine = choose_for_cpu(layer, rows, options)
            if engine.name == "sparse engine":
                self._pruned[n] = engine.compute
        # From a block of shaped features to the scores, for the other layers. The first one is
        # computed from the logits if any is.
        self._functions = {
            n: choose_for_cpu(replace(layer, shaping=None), rows, options).compute
            for n, layer in enumerate(nested.layers)
            if n not in self._pruned and (n > 0 or not self._pruned)
        }

    def __call__(self, block: NDArray[Any]) -> list[Any]:
        shaped = apply_shaping(self._layers[0].shaping, block)
        if not self._pruned:
            return [function(shaped) for function in self._functions.values()]
        with np.errstate(over="ignore", invalid="ignore"):  # `check_values` reports it
            return self.values(shaped, shaped @ self._weight.T)

    def values(self, shaped: NDArray[Any], logits: NDArray[Any]) -> list[Any]:
        """Return the values from shaped features and the logits of all weights without bias."""
        values = [self._score(0, logits, None)]
        for n in range(1, len(self._layers)):
            if n in self._pruned:
                values.append(self._score(n, logits, self._pruned[n](shaped)))
            else:
                values.append(self._functions[n](shaped))
        return values

    def _score(self, n: int, logits: NDArray[Any], subtracted: NDArray[Any] | None) -> Any:
        score = self._layers[n].score
        if self._summaries is not None and score in FUSED_SCORES:
            summary = self._summaries.of_logits(logits, self._bias, subtracted=subtracted)
            return fused_scores(cast(FusedScore, score), summary.maxima, summary.totals)
        logits = logits + self._bias
        if subtracted is not None:
            logits -= subtracted
        return score_logits(score, logits)
