"""``skdice search`` chooses a sparsity or the ensemble by known out-of-distribution sets."""

import json
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

import numpy as np

from skdice._base import BaseDetector
from skdice._dice import DICEDetector
from skdice._engines.run import Options
from skdice._ensemble import make_ensemble
from skdice._head import LinearHead, as_linear_head
from skdice._passes.mean import gather_statistics
from skdice._persistence.files import save
from skdice._rows.door import as_sliced_source
from skdice._rows.sources import SelectedRows, SlicedRows
from skdice._search import SPARSITIES, path_scores
from skdice.cli._argument_types import ID_NAME
from skdice.cli._commands import make_shaping, read_head
from skdice.cli._files import file_name_in_errors, open_rows, print_result, refuse_overwriting
from skdice.metrics import MetricsTable
from skdice.metrics._report import measure_scores, score_rows
from skdice.shaping import fit_shaping

ENSEMBLE = "ensemble"
# Where no other in-distribution rows are given, one row in so many is measured and not fitted.
HELD_OUT = 5


def search(arguments: Namespace) -> None:
    """Measure sparsities and the ensemble on known OOD sets; fit and save the best of them."""
    if arguments.output is not None:
        inputs = [arguments.features, arguments.head, arguments.id, *arguments.ood.values()]
        refuse_overwriting(arguments.output, *filter(None, inputs))
    given_head = read_head(arguments)
    rows = open_source(arguments.features, arguments.key)
    if arguments.id is None:
        fitted_rows, id_rows = split(rows)
    else:
        fitted_rows, id_rows = rows, open_source(arguments.id, arguments.key)
    measured = [(ID_NAME, arguments.id or arguments.features, id_rows)]
    for name, path in arguments.ood.items():
        measured.append((name, path, open_source(path, arguments.key)))
    with file_name_in_errors(arguments.features):
        head = as_linear_head(given_head, rows.shape[1])
        scores = scores_of_candidates(arguments, head, fitted_rows, measured)
    table = MetricsTable(
        {
            name: measure_scores(of_sets.pop(ID_NAME), of_sets, None)
            for name, of_sets in scores.items()
        }
    )
    best = max(table.results, key=lambda name: table.results[name].mean.auroc)
    if arguments.output is not None:
        with file_name_in_errors(arguments.features):
            detector = chosen_detector(arguments, given_head, best)
            detector.set_params(verbose=arguments.verbose).fit(rows)
        save(detector.set_params(verbose=0), arguments.output)
    report(arguments, table, best)


def open_source(path: str, key: str | None) -> SlicedRows:
    """Open a feature file as rows that are read in blocks."""
    with file_name_in_errors(path):
        return as_sliced_source(open_rows(path, key))


def split(rows: SlicedRows) -> tuple[SlicedRows, SlicedRows]:
    """Return random rows to fit on, and the rest to measure on, in their order."""
    n_rows = len(rows)
    if n_rows < HELD_OUT:
        raise ValueError(
            f"FEATURES has {n_rows} rows, expected at least {HELD_OUT}: one in {HELD_OUT} is held "
            "out, unless --id names other in-distribution rows"
        )
    is_held = np.zeros(n_rows, np.bool_)
    rng = np.random.default_rng(0)
    is_held[rng.choice(n_rows, n_rows // HELD_OUT, replace=False)] = True
    return SelectedRows(rows, ~is_held), SelectedRows(rows, is_held)


def scores_of_candidates(
    arguments: Namespace,
    head: LinearHead,
    fitted_rows: SlicedRows,
    measured: Sequence[tuple[str, str, SlicedRows]],
) -> dict[str, dict[str, Any]]:
    """Return, by the name of the candidate, the scores by the name of the set."""
    options = Options(verbose=arguments.verbose)
    mean = gather_statistics(fitted_rows, verbose=arguments.verbose).mean()
    shaping = fit_shaping(make_shaping(arguments.shaping), fitted_rows, arguments.verbose)
    ensemble = make_ensemble(head, verbose=arguments.verbose).fit(fitted_rows)
    names = [*map(name_of, SPARSITIES), ENSEMBLE]
    scores: dict[str, dict[str, Any]] = {name: {} for name in names}
    for set_name, path, rows in measured:
        with file_name_in_errors(path):
            if rows.shape[1] != head.n_features:
                raise ValueError(
                    f"it has {rows.shape[1]} features, but the head expects {head.n_features}"
                )
            of_path = path_scores(
                head, mean, shaping, rows, SPARSITIES, arguments.score or "energy", options
            )
            for sparsity, of_sparsity in zip(SPARSITIES, of_path, strict=True):
                scores[name_of(sparsity)][set_name] = of_sparsity
            scores[ENSEMBLE][set_name] = score_rows(ensemble, rows)
    return scores


def name_of(sparsity: float) -> str:
    """Return the name of a sparsity in the table."""
    return f"sparsity {sparsity:g}"


def chosen_detector(arguments: Namespace, head: Any, name: str) -> BaseDetector:
    """Return the unfitted detector that has this name in the table."""
    if name == ENSEMBLE:
        return make_ensemble(head, contamination=arguments.contamination)
    (sparsity,) = (sparsity for sparsity in SPARSITIES if name_of(sparsity) == name)
    return DICEDetector(
        head,
        sparsity=sparsity,
        shaping=make_shaping(arguments.shaping),
        score_func=arguments.score or "energy",
        contamination=arguments.contamination,
    )


def report(arguments: Namespace, table: MetricsTable, best: str) -> None:
    """Print the table, the best candidate, and what was written."""
    mean = table.results[best].mean
    output = None if arguments.output is None else str(arguments.output)
    if arguments.json:
        candidates = {
            name: {key: figures[key] for key in ("sets", "mean")}
            for name, figures in table.to_dict().items()
        }
        facts = {"best": best, "output": output, "candidates": candidates}
        print(json.dumps({"convention": "in-distribution is positive; fractions", **facts}))
        return
    print(table)
    of_sparsities = [name for name in table.results if name != ENSEMBLE]
    second = ENSEMBLE
    if best == ENSEMBLE:
        second = max(of_sparsities, key=lambda name: table.results[name].mean.auroc)
    print(
        f"\nThe best mean AUROC is that of {best}, {100 * mean.auroc:.1f}; {second} has "
        f"{100 * table.results[second].mean.auroc:.1f}."
    )
    if output is not None:
        print_result(
            arguments,
            {"best": best, "output": output},
            "fitted {best} on all features; wrote {output}; next: skdice calibrate {output} ...",
        )
