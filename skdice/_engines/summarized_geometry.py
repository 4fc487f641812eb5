"""The layers of one head by `RowSummaries`, without arrays between the steps; for CPUs."""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from skdice._engines.geometric import geometric_engine, over_distance, packed_geometry
from skdice._engines.layer import GeometricLayers, ViMLayer
from skdice._engines.summaries import RowSummaries

FloatArray = NDArray[np.floating[Any]]


class SummarizedGeometry:
    """A function from a NumPy block to the values by each layer of a group.

    Parameters
    ----------
    group : GeometricLayers
        The layers. Their head has at most `geometric.MOST_TABLED_CLASSES` classes.
    summaries : RowSummaries
        The compiled functions of the dtype in which the layers are computed.
    """

    def __init__(self, group: GeometricLayers, summaries: RowSummaries) -> None:
        self._layers, self._summaries = group.layers, summaries
        self._factors, places, self._arrays = packed_geometry(group, summaries.dtype)
        self.bias = self._factors[0][1][: len(group.weight)]
        # The factors of the margins depend on the head only, so all layers have the same.
        tables = [arrays.boundaries for arrays in self._arrays if arrays is not None]
        self._table = tables[0] if tables else None
        # The norm of a residual is the distance of the product to minus the shift.
        self._points = [
            (n, columns.start, -self._factors[n][1][columns]) for n, columns in places[1:]
        ]

    def __call__(self, block: FloatArray) -> list[FloatArray]:
        return self.values(block, self.products(block))

    def products(self, block: FloatArray) -> list[FloatArray]:
        """Return the products of a block; the first has the logits without bias in front."""
        with np.errstate(all="ignore"):  # `check_values` reports an overflow with its row
            return [block @ weight for weight, _ in self._factors]

    def values(self, block: FloatArray, products: list[FloatArray]) -> list[FloatArray]:
        """Return the values of a block, whose products stay as they are."""
        summary = self._summaries.of_logits(products[0], self.bias, factors=self._table)
        points = iter(self._points)
        values = []
        with np.errstate(all="ignore"):
            energies = np.log(summary.totals) + summary.maxima
            for layer, arrays in zip(self._layers, self._arrays, strict=True):
                if arrays is not None:
                    distance = self._summaries.distances(block, arrays.mean)
                    values.append(over_distance(summary.margins, distance, arrays.least_distance))
                    continue
                n, first, point = next(points)
                norm = self._summaries.distances(products[n], point, first)
                alpha = cast(ViMLayer, layer).alpha
                values.append(
                    np.stack([summary.maxima, energies, norm], axis=1)
                    if alpha is None
                    else energies - alpha * norm
                )
        return values


def geometric_function(
    group: GeometricLayers, dtype: np.dtype[Any], summaries: RowSummaries | None
) -> SummarizedGeometry | Callable[[FloatArray], list[FloatArray]]:
    """Return the faster function from a NumPy block to the values by each layer of a group."""
    if summaries is None:
        return geometric_engine(group, dtype)
    arrays = packed_geometry(group, dtype).arrays
    is_tabled = all(each is None or each.boundaries is not None for each in arrays)
    return SummarizedGeometry(group, summaries) if is_tabled else geometric_engine(group, dtype)
