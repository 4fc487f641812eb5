"""Measure at which quantile of the activations ReAct should clip by default.

    SKDICE_DATA=... python benchmarks/react_quantile.py --output TABLE.rst

For each network, the clipping threshold is the quantile of all activations of the training rows.
The table gives FPR95 / AUROC in percent (the paper's rule, in-distribution positive), as means over
the OOD sets of the network, for the energy (sparsity 0) and for DICE with sparsity 0.1.
"""

import argparse
import textwrap
from pathlib import Path

import numpy as np
from choosing_without_ood import problems
from reproduction import cell, heading, publish, rst_table

from skdice import DICEDetector, LinearHead
from skdice.metrics import compare
from skdice.shaping import ReAct

QUANTILES = (0.9, 0.95, 0.98, 0.99)
SPARSITIES = {"energy": 0.0, "DICE 0.1": 0.1}

Rates = tuple[float, float]


def measure(
    head: LinearHead, train: np.ndarray, test: np.ndarray, sets: dict[str, np.ndarray]
) -> dict[str, list[Rates]]:
    """Return the mean FPR95 and AUROC in percent, without clipping and at each quantile, by score.

    Parameters
    ----------
    head : LinearHead
        The last linear layer.
    train, test : ndarray
        In-distribution features: those that the detectors are fitted on, and others.
    sets : dict of str to ndarray
        The features of each OOD set.
    """
    rates = {}
    for score, sparsity in SPARSITIES.items():
        detectors = {
            str(shaping): DICEDetector(head, sparsity=sparsity, shaping=shaping).fit(train)
            for shaping in (None, *map(ReAct, QUANTILES))
        }
        results = compare(detectors, test, sets).results.values()
        rates[score] = [(100 * each.mean.fpr95, 100 * each.mean.auroc) for each in results]
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="write the table to this file, too")
    arguments = parser.parse_args()
    networks, notes = {}, []
    for name, head, train, test, sets in problems():
        networks[name] = measure(head, train, test, sets)
        notes.append(
            f"{name}: {len(train):,} training rows, {len(test):,} test rows; the OOD sets are "
            f"{', '.join(sets)}. {np.mean(train > 0):.0%} of the activations are above 0."
        )
    rows = [
        [f"{name}, {score}", *(cell(rates, 1) for rates in by_score[score])]
        for score in SPARSITIES
        for name, by_score in networks.items()
    ]
    for score in SPARSITIES:
        means = np.mean([by_score[score] for by_score in networks.values()], axis=0)
        rows.append([f"mean, {score}", *(cell(rates, 1) for rates in means)])
    header = ["network, score", "no clipping", *(f"{quantile:g}" for quantile in QUANTILES)]
    about = __doc__.partition("\n\n")[2].partition("\n\n")[2].strip()
    bullets = "\n".join(
        textwrap.fill(note, 99, initial_indent="* ", subsequent_indent="  ") for note in notes
    )
    parts = [heading("The quantile of ReAct", "="), about, bullets, rst_table(header, rows)]
    publish("\n\n".join(parts), arguments.output)


if __name__ == "__main__":
    main()
