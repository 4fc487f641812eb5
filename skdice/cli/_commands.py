"""What the subcommands do: from parsed arguments to files and printed results."""

from __future__ import annotations

import json
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from skdice import DICEDetector, LinearHead, load, shaping
from skdice._compat.extras import import_extra
from skdice._persistence import read_document
from skdice._rows.sources import Sliceable
from skdice.io import open_features, save_scores
from skdice.io._atomic import check_output, replacing
from skdice.metrics import OODReport
from skdice.metrics._report import CONVENTION, measure_scores

# Among the sets of an evaluation.
ID_NAME = "in-distribution"


def fit(arguments: Namespace) -> None:
    """Fit a detector on a feature file and save it."""
    head: Any = arguments.head
    refuse_overwriting(arguments.output, arguments.features, head)
    sparsity = 0.0 if head == "identity" else 0.7
    if head != "identity":
        head = LinearHead.from_file(head, prefix=arguments.layer)
    detector = DICEDetector(
        head,
        sparsity=sparsity if arguments.sparsity is None else arguments.sparsity,
        shaping=parse_shaping(arguments.shaping),
        score_func=arguments.score,
        contamination=arguments.contamination,
    )
    with naming(arguments.features), opened(arguments) as features:
        detector.set_params(verbose=arguments.verbose).fit(features)
    detector.set_params(verbose=0).save(arguments.output)
    report(
        arguments,
        {
            "output": str(arguments.output),
            "rows": detector.n_samples_seen_,
            "classes": len(detector.mask_),
            "features": detector.n_features_in_,
            "kept_weights": int(detector.mask_.sum()),
            "weights": detector.mask_.size,
            "threshold": detector.offset_,
        },
        "fitted on {rows:,} rows for {classes:,} classes x {features:,} features, kept "
        "{kept_weights:,} of {weights:,} weights, threshold {threshold:.6g}; wrote {output}",
    )


def calibrate(arguments: Namespace) -> None:
    """Set the threshold of a saved detector from held-out in-distribution rows."""
    output = arguments.output or arguments.detector
    refuse_overwriting(output, arguments.features)
    detector = load(arguments.detector)
    with naming(arguments.features), opened(arguments) as features:
        n_rows = features.shape[0]
        detector.set_params(verbose=arguments.verbose).calibrate(
            features, arguments.contamination, method=arguments.method
        )
    detector.set_params(verbose=0).save(output)
    report(
        arguments,
        {"output": str(output), "rows": n_rows, "threshold": detector.offset_},
        "threshold {threshold:.6g} from {rows:,} rows; wrote {output}",
    )


def score(arguments: Namespace) -> None:
    """Score a feature file, to a file or as lines of text."""
    if arguments.output is not None:
        refuse_overwriting(arguments.output, arguments.features, arguments.detector)
    detector = load(arguments.detector).set_params(verbose=arguments.verbose)
    with naming(arguments.features), opened(arguments) as features:
        score_rows(arguments, detector, features)


def score_rows(arguments: Namespace, detector: DICEDetector, features: Sliceable) -> None:
    """Write the scores of rows to a file or to standard output."""
    if arguments.output is not None:
        n_rows = save_scores(arguments.output, detector, features)
        report(
            arguments,
            {"output": str(arguments.output), "rows": n_rows},
            "scored {rows:,} rows; wrote {output}",
        )
        return
    offset = getattr(detector, "offset_", None)
    row = 0
    for scores in detector._iterate_scores(features)[1]:
        for value in scores:
            label = None if offset is None else (1 if value - offset >= 0 else -1)
            if arguments.json:
                print(json.dumps({"row": row, "score": float(value), "label": label}))
            else:
                print(value, *([] if label is None else [label]), sep="\t")
            row += 1


def evaluate(arguments: Namespace) -> None:
    """Measure a saved detector on one in-distribution file and named OOD files."""
    detector = load(arguments.detector).set_params(verbose=arguments.verbose)
    files = dict(parse_named(each) for each in arguments.ood)
    if len(files) < len(arguments.ood):
        raise ValueError("--ood was given the same name twice")
    if arguments.png is not None:
        if arguments.png.suffix != ".png":
            raise ValueError(f"cannot draw {arguments.png}: expected a name that ends in .png")
        import_extra("matplotlib", "plot")  # before the work, not after it
        refuse_overwriting(arguments.png, arguments.detector, arguments.id, *files.values())

    def scores_of(path: str) -> Any:
        with naming(path):
            return detector.score_samples(open_rows(path, arguments.key))

    id_scores = scores_of(arguments.id)
    ood_scores = {name: scores_of(path) for name, path in files.items()}
    threshold = getattr(detector, "offset_", None)
    result = measure_scores(id_scores, ood_scores, threshold)
    report = OODReport({str(arguments.detector): result})
    if arguments.json:
        (told,) = report.to_dict().values()
        told = {"convention": "in-distribution is positive; fractions", **told}
        print(json.dumps({name: each for name, each in told.items() if "accuracy" not in name}))
    else:
        print(f"{CONVENTION}:\n\n{report}")
        if threshold is not None:
            flagged = {ID_NAME: result.id_flagged}
            flagged |= {name: each.flagged for name, each in result.sets.items()}
            shares = ", ".join(f"{name} {share:.1%}" for name, share in flagged.items())
            print(f"\nflagged as out-of-distribution: {shares}")
    if arguments.png is not None:
        from skdice.cli._pictures import draw_evaluation

        with replacing(arguments.png) as temporary:
            draw_evaluation(
                temporary,
                title=str(arguments.detector),
                id_scores=id_scores,
                ood_scores=ood_scores,
                threshold=threshold,
            )


def inspect(arguments: Namespace) -> None:
    """Show what a detector file holds."""
    detector, document = load(arguments.detector), read_document(arguments.detector)
    facts = {
        "versions": document["versions"],
        "schema": document["schema"],
        "classes": len(detector.mask_),
        "features": detector.n_features_in_,
        "feature_names": document["fitted"]["feature_names"],
        "parameters": document["parameters"],
        "shaping": document["fitted"]["shaping"],
        "rows_fitted": detector.n_samples_seen_,
        "kept_weights": int(detector.mask_.sum()),
        "weights": detector.mask_.size,
        "threshold": getattr(detector, "offset_", None),
    }
    if arguments.json:
        print(json.dumps(facts, indent=2))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        if isinstance(value, dict):
            value = json.dumps(value)
        print(f"{name.replace('_', ' '):<{width}}  {'none' if value is None else value}")


def report(arguments: Namespace, facts: dict[str, Any], sentence: str) -> None:
    """Tell what was done: on stdout with --json, else on stderr unless --quiet."""
    if arguments.json:
        print(json.dumps(facts))
    elif not arguments.quiet:
        print(sentence.format(**facts), file=sys.stderr)


@contextmanager
def opened(arguments: Namespace) -> Iterator[Any]:
    """Open the features of a command, with --scheduler as chunks that its workers read."""
    if arguments.scheduler is None:
        yield open_rows(arguments.features, arguments.key)
        return
    if arguments.features == "-":
        raise ValueError("--scheduler reads files that its workers see, not standard input")
    distributed = import_extra("distributed", "dask")
    from skdice.io._distributed import distributed_features

    with distributed.Client(arguments.scheduler):
        try:
            yield distributed_features(arguments.features, arguments.key)
        except distributed.KilledWorker as error:
            raise OSError(str(error)) from error


def open_rows(path: str, key: str | None) -> Sliceable:
    """Open a feature file; ``-`` is a .npy file on standard input."""
    if path != "-":
        return open_features(path, key)
    with tempfile.TemporaryDirectory() as folder:
        spool = Path(folder) / "stdin.npy"
        with spool.open("wb") as file:
            while content := sys.stdin.buffer.read(1 << 20):
                file.write(content)
        try:
            return open_features(spool, key)  # the mapping outlives the name
        except ValueError as error:
            message = str(error).replace(str(spool), "standard input, which must be a .npy file")
            raise ValueError(message) from error


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Put the name of the file before what is wrong with its rows."""
    try:
        yield
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from error


def refuse_overwriting(output: Path, *inputs: str | Path) -> None:
    """Raise if nothing can be written there, or if it is one of the inputs."""
    check_output(output)
    for each in map(Path, inputs):
        if output.exists() and each.exists() and output.samefile(each):
            raise ValueError(f"the output {output} is an input, which would be lost")
        if each.is_dir() and output.parent.samefile(each):
            raise ValueError(f"the output {output} lies in the folder {each}, which is an input")


def parse_named(text: str) -> tuple[str, str]:
    """Split ``NAME=FILE``; without a name, the file's own is taken."""
    if Path(text).exists():  # an equals sign may be part of its path
        return Path(text).stem, text
    name, equals, path = text.partition("=")
    if name == ID_NAME:
        raise ValueError(f"--ood {text}: the name {ID_NAME} is taken")
    if equals and not (name and path):
        raise ValueError(f"--ood {text}: expected NAME=FILE")
    return (name, path) if equals else (Path(text).stem, text)


def parse_shaping(text: str | None) -> Any:
    """Return the shaping named in ``react`` or ``react:quantile=0.9``, as --shaping takes it."""
    if text is None:
        return None
    name, _, options = text.partition(":")
    classes = {each.lower(): getattr(shaping, each) for each in shaping.__all__}
    if name.lower() not in classes:
        raise ValueError(f"--shaping {text}: expected one of {', '.join(sorted(classes))}")
    try:
        values = {
            key: float(value)
            for key, value in (option.split("=") for option in options.split(",") if option)
        }
        return classes[name.lower()](**values)
    except (TypeError, ValueError):
        known = ", ".join(classes[name.lower()]().get_params())
        raise ValueError(
            f"--shaping {text}: expected {name}:NAME=NUMBER[,NAME=NUMBER] with names {known}"
        ) from None
