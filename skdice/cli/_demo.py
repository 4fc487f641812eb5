"""``skdice demo`` measures which score and how much pruning suit a network."""

import time
from argparse import Namespace

import numpy as np

from skdice._base import BaseDetector
from skdice._dice import DICEDetector
from skdice._ensemble import make_ensemble
from skdice._fdbd import FDBDDetector
from skdice._head import LinearHead
from skdice._persistence.files import save
from skdice._rows.sources import FloatArray
from skdice._vim import ViMDetector
from skdice.datasets import load_fashion_mnist_ood
from skdice.metrics import MetricsTable, compare
from skdice.metrics._report import SetResult
from skdice.shaping import ReAct

SPARSITIES = (0.1, 0.3, 0.5, 0.7, 0.9, 0.95)
# The demo does not call a smaller change of the mean AUROC a gain or a loss.
CLEAR_GAIN = 0.005
ENSEMBLE = "Ensemble"

PUBLISHED = """\
Published, not measured here: on ImageNet-1k with ResNet-50, DICE at sparsity 0.7 improves the
energy score's mean FPR95 / AUROC from 58.41 / 86.17 to 34.75 / 90.77, and DICE + ReAct improves
it to 27.25 / 93.40 (Sun & Li, ECCV 2022, arXiv:2111.09805). Networks differ: measure yours."""


def candidates(head: LinearHead) -> dict[str, BaseDetector]:
    """Return the unfitted detectors of the table by their names."""
    return {
        "MSP": DICEDetector(head, sparsity=0, score_func="msp"),
        "MaxLogit": DICEDetector(head, sparsity=0, score_func="max_logit"),
        "Energy": DICEDetector(head, sparsity=0),
        "ReAct": DICEDetector(head, sparsity=0, shaping=ReAct()),
        **{
            f"{name}, sparsity {sparsity:g}": DICEDetector(head, sparsity=sparsity, shaping=shaping)
            for name, shaping in (("DICE", None), ("DICE + ReAct", ReAct()))
            for sparsity in SPARSITIES
        },
        "FDBD": FDBDDetector(head),
        "ViM": ViMDetector(head),
        ENSEMBLE: make_ensemble(head),
    }


def halves(rows: FloatArray, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """Return two random halves of the rows, one for validation and one for testing."""
    order = rng.permutation(len(rows))
    return rows[order[::2]], rows[order[1::2]]


def percent(result: SetResult) -> str:
    """Return FPR95 and AUROC in percent, separated by a slash."""
    return f"{100 * result.fpr95:.1f} / {100 * result.auroc:.1f}"


def pruning_verdict(report: MetricsTable) -> str:
    """Return one sentence about what pruning alone did to the mean AUROC."""
    quality_at = {
        sparsity: report.results[f"DICE, sparsity {sparsity:g}"].mean for sparsity in SPARSITIES
    }
    unpruned = report.results["Energy"].mean
    best = max(SPARSITIES, key=lambda sparsity: quality_at[sparsity].auroc)
    gain = quality_at[best].auroc - unpruned.auroc
    if gain >= CLEAR_GAIN:
        verdict = "helps"
    elif gain > -CLEAR_GAIN:
        verdict = f"changes the mean AUROC by less than {100 * CLEAR_GAIN} points at its best"
    else:
        verdict = "hurts"
    heavy = SPARSITIES[-1]
    return (
        f"Pruning alone {verdict} here: mean FPR95 / AUROC {percent(unpruned)} with nothing "
        f"pruned, {percent(quality_at[best])} at sparsity {best:g} (its best), and "
        f"{percent(quality_at[heavy])} at {heavy:g}, which prunes too much."
    )


def choice_verdict(report: MetricsTable, best: str, worst: str) -> str:
    """Return sentences about the best and the worst single score, and about the ensemble."""
    means = {name: report.results[name].mean for name in (best, worst, ENSEMBLE)}
    to_best = 100 * (means[ENSEMBLE].auroc - means[best].auroc)
    to_worst = 100 * (means[ENSEMBLE].auroc - means[worst].auroc)
    return (
        f"Without outliers you cannot tell which score that is. The worst single choice, {worst}, "
        f"would have given {percent(means[worst])}. The ensemble of energy, DICE, FDBD and ViM "
        f"needs no choice and gives {percent(means[ENSEMBLE])}, where {best} gives "
        f"{percent(means[best])}: its AUROC is {abs(to_best):.1f} points "
        f"{'above' if to_best >= 0 else 'below'} that of the best single choice, and "
        f"{abs(to_worst):.1f} points {'above' if to_worst >= 0 else 'below'} that of the worst."
    )


def demo(arguments: Namespace) -> None:
    """Run the demo: print its measurements, and write a picture and a detector to a folder."""
    started = time.perf_counter()
    folder = arguments.output
    folder.mkdir(parents=True, exist_ok=True)
    data = load_fashion_mnist_ood()
    rng = np.random.default_rng(0)
    id_validation, id_test = halves(data.id_test, rng)
    ood_halves = {name: halves(rows, rng) for name, rows in data.ood.items()}
    ood_validation = {name: rows[0] for name, rows in ood_halves.items()}
    ood_test = {name: rows[1] for name, rows in ood_halves.items()}

    print(
        "The network is a ResNet that was trained on Fashion-MNIST. The out-of-distribution sets\n"
        "are handwritten digits (mnist, and the smaller UCI digits) and textures (patches of\n"
        "photographs)."
    )
    print(
        f"The detectors are fitted on {len(data.id_train):,} training rows of "
        f"{data.head.n_features} features, {data.head.n_classes} classes.\n\n"
        "ID and OOD flagged are the shares of rows below a threshold that is set at 5 % of the\n"
        "training rows, which the network knows. The validation half gives:\n"
    )
    detectors = {
        name: detector.fit(data.id_train) for name, detector in candidates(data.head).items()
    }
    table = compare(detectors, id_validation, ood_validation)
    print(table)

    results = table.results
    single = [name for name in results if name != ENSEMBLE]
    chosen = max(single, key=lambda name: results[name].mean.auroc)
    worst = min(single, key=lambda name: results[name].mean.auroc)
    print(
        f"\n{chosen} is the single score with the best mean AUROC. The test half, which had no "
        "part\nin the choice, gives:\n"
    )
    shown = dict.fromkeys(("Energy", "ReAct", chosen, worst, ENSEMBLE))
    on_test = compare({name: detectors[name] for name in shown}, id_test, ood_test)
    print(on_test)

    detector = detectors[chosen].calibrate(id_validation)
    flagged = float(np.mean(detector.predict(id_test) == -1))
    caught = np.mean([np.mean(detector.predict(rows) == -1) for rows in ood_test.values()])
    before, after = on_test.results["Energy"].mean, on_test.results[chosen].mean
    print(
        f"\n1. With outliers to measure on, you would choose {chosen}: mean FPR95 / AUROC "
        f"{percent(after)}, against {percent(before)} of the energy score."
    )
    print(f"2. {choice_verdict(on_test, chosen, worst)}")
    print(f"3. {pruning_verdict(table)}")
    print(
        f"4. With the threshold of {chosen} at 5 % of unseen in-distribution rows, it flags "
        f"{flagged:.1%} of the test rows and {caught:.1%} of the out-of-distribution rows."
    )
    print(f"\n{PUBLISHED}\n")

    detector_path = folder / "detector.safetensors"
    save(detector, detector_path)
    written = [str(detector_path)]
    try:
        from skdice.cli._pictures import draw_demo
    except ImportError as error:
        print(f"No picture: {error}")
    else:
        picture_path = folder / "demo.png"
        curves = {
            "DICE": ["Energy", *(f"DICE, sparsity {p:g}" for p in SPARSITIES)],
            "DICE + ReAct": ["ReAct", *(f"DICE + ReAct, sparsity {p:g}" for p in SPARSITIES)],
        }
        draw_demo(
            picture_path,
            title=f"{chosen}: unseen rows",
            id_name="Fashion-MNIST (ID)",
            id_scores=detector.score_samples(id_test),
            ood_scores={name: detector.score_samples(rows) for name, rows in ood_test.items()},
            threshold=detector.offset_,
            sparsities=[0.0, *SPARSITIES],
            auroc={
                curve: [100 * results[name].mean.auroc for name in names]
                for curve, names in curves.items()
            },
        )
        written.insert(0, str(picture_path))
    print(
        f"Wrote {' and '.join(written)} in {time.perf_counter() - started:.1f} s.\n"
        f"Next: skdice inspect {detector_path}, or skdice.load({str(detector_path)!r}) in Python."
    )
