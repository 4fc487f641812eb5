"""The subcommands that read feature files and detector files."""

import json
from argparse import Namespace
from dataclasses import asdict
from typing import Any

from skdice import shaping
from skdice._base import BaseDetector
from skdice._compat.extras import import_extra
from skdice._dice import DICEDetector
from skdice._ensemble import ConformalEnsemble, make_ensemble
from skdice._fdbd import FDBDDetector
from skdice._head import LinearHead
from skdice._persistence.files import load, read_document, save
from skdice._vim import ViMDetector
from skdice.cli._argument_types import ID_NAME
from skdice.cli._files import (
    file_name_in_errors,
    open_rows,
    open_rows_or_chunks,
    print_result,
    refuse_overwriting,
)
from skdice.io._atomic import replacing
from skdice.metrics import MetricsTable
from skdice.metrics._report import measure_detector, measure_scores


def fit(arguments: Namespace) -> None:
    """Fit a detector on a feature file and save it."""
    refuse_overwriting(arguments.output, arguments.features, arguments.head)
    detector = make_detector(arguments, read_head(arguments))
    with file_name_in_errors(arguments.features), open_rows_or_chunks(arguments) as features:
        detector.set_params(verbose=arguments.verbose).fit(features)
    save(detector.set_params(verbose=0), arguments.output)
    facts = {
        "output": str(arguments.output),
        "rows": detector.n_samples_seen_,
        "classes": detector.head_.n_classes,
        "features": detector.n_features_in_,
        **describe_weights(detector),
        "threshold": detector.offset_,
    }
    kept = "kept {kept_weights:,} of {weights:,} weights, " if "weights" in facts else ""
    print_result(
        arguments,
        facts,
        "fitted on {rows:,} rows for {classes:,} classes x {features:,} features, "
        f"{kept}threshold {{threshold:.6g}}; wrote {{output}}",
    )


def read_head(arguments: Namespace) -> Any:
    """Return the head in the file that --head names, or the word identity."""
    if arguments.head == "identity":
        return "identity"
    return LinearHead.from_file(arguments.head, layer=arguments.layer)


def make_detector(arguments: Namespace, head: Any) -> BaseDetector:
    """Return the unfitted detector that the options of `fit` name."""
    if arguments.detector == "dice":
        # Features that are logits already have no weights to prune.
        sparsity = 0.0 if isinstance(head, str) else 0.1
        return DICEDetector(
            head,
            sparsity=sparsity if arguments.sparsity is None else arguments.sparsity,
            shaping=make_shaping(arguments.shaping),
            score_func=arguments.score or "energy",
            contamination=arguments.contamination,
        )
    for option in ("sparsity", "score", "shaping"):
        if getattr(arguments, option) is not None:
            raise ValueError(
                f"--{option} is an option of --detector dice, and --detector is "
                f"{arguments.detector}: leave it out"
            )
    make: dict[str, Any] = {"vim": ViMDetector, "fdbd": FDBDDetector, "ensemble": make_ensemble}
    detector: BaseDetector = make[arguments.detector](head, contamination=arguments.contamination)
    return detector


def describe_weights(detector: BaseDetector) -> dict[str, int]:
    """Return how many weights a detector keeps; nothing for one that prunes none."""
    if not isinstance(detector, DICEDetector):
        return {}
    return {"kept_weights": int(detector.mask_.sum()), "weights": detector.mask_.size}


def describe_members(detector: BaseDetector, document: dict[str, Any]) -> dict[str, Any]:
    """Return what the members of an ensemble are; nothing for other detectors."""
    if not isinstance(detector, ConformalEnsemble):
        return {}
    members = []
    for member in document["members"]:
        fitted = detector.named_estimators_[member["name"]]
        facts = {"name": member["name"], "detector": type(fitted).__name__}
        if isinstance(fitted, DICEDetector):
            facts["sparsity"] = fitted.sparsity
        if (fitted_shaping := member["document"]["fitted"].get("shaping")) is not None:
            facts["shaping"] = fitted_shaping
        members.append({**facts, **describe_weights(fitted), **describe_agreement(fitted)})
    return {"members": members}


def describe_agreement(detector: BaseDetector) -> dict[str, float | None]:
    """Return how well the pruned and the full head agree; nothing for one that prunes none."""
    if not isinstance(detector, DICEDetector):
        return {}
    return {"head_agreement": getattr(detector, "head_agreement_", None)}


def calibrate(arguments: Namespace) -> None:
    """Set the threshold of a saved detector from held-out in-distribution rows."""
    output = arguments.output or arguments.detector
    refuse_overwriting(output, arguments.features)
    detector = load(arguments.detector)
    replaced = describe_threshold(detector)
    # What is not given stays as it is in the detector file.
    kept: dict[str, Any] = {"method": "quantile", **(replaced or {})}
    method = arguments.method or kept["method"]
    if method != "conformal":
        kept |= {"confidence": None, "by": None}
    contamination, confidence, by = (
        kept.get(name) if getattr(arguments, name) is None else getattr(arguments, name)
        for name in ("contamination", "confidence", "by")
    )
    with file_name_in_errors(arguments.features), open_rows_or_chunks(arguments) as features:
        n_rows = features.shape[0]
        detector.set_params(verbose=arguments.verbose).calibrate(
            features,
            contamination,
            method=method,
            confidence=None if confidence == "none" else confidence,
            by=None if by == "none" else by,
        )
    save(detector.set_params(verbose=0), output)
    calibration = describe_threshold(detector) or {}
    sentence = f"{threshold_sentence(calibration)}, from {n_rows:,} rows"
    if replaced is not None:
        sentence += f", replaces {threshold_sentence(replaced)}"
    print_result(
        arguments,
        {"output": str(output), "rows": n_rows, **calibration, "replaced": replaced},
        f"{sentence}; wrote {{output}}",
    )


def threshold_sentence(facts: dict[str, Any]) -> str:
    """Return the words for what `describe_threshold` returns."""
    sentence = "threshold {threshold:.6g} ({method}, contamination {contamination:g}"
    if facts["confidence"] is not None:
        sentence += ", confidence {confidence:g}"
    if facts["by"] is not None:
        sentence += ", by {by}"
    return sentence.format(**facts) + ")"


def describe_threshold(detector: BaseDetector) -> dict[str, Any] | None:
    """Return a detector's threshold, its method and its contamination; None without a threshold."""
    if not hasattr(detector, "offset_"):
        return None
    calibration = getattr(detector, "calibration_", None)
    return {
        "threshold": detector.offset_,
        # `fit` keeps no record: it sets the quantile threshold of its own rows.
        "method": "quantile" if calibration is None else calibration.method,
        "contamination": detector.contamination_,
        "confidence": None if calibration is None else calibration.confidence,
        "by": None if calibration is None else calibration.by,
    }


def describe_classes(detector: BaseDetector) -> dict[str, list[Any]]:
    """Return the thresholds of the predicted classes; nothing if all have one threshold."""
    if not hasattr(detector, "class_offsets_"):
        return {}
    return {
        "class_thresholds": detector.class_offsets_.tolist(),
        "fallback_classes": detector.fallback_classes_.tolist(),
    }


def evaluate(arguments: Namespace) -> None:
    """Measure a saved detector on one in-distribution file and on named OOD files."""
    detector = load(arguments.detector).set_params(verbose=arguments.verbose)
    if arguments.png is not None:
        # A missing library must be found before the scores are computed.
        import_extra("matplotlib", "plot")
        refuse_overwriting(arguments.png, arguments.detector, arguments.id, *arguments.ood.values())

    def open_and_score(path: str) -> tuple[Any, Any, dict[str, Any]]:
        with file_name_in_errors(path):
            rows = open_rows(path, arguments.key)
            if isinstance(detector, ConformalEnsemble):
                return rows, *detector._scores_with_members(rows)
            return rows, detector.score_samples(rows), {}

    id_rows, id_scores, id_members = open_and_score(arguments.id)
    sets = {name: open_and_score(path) for name, path in arguments.ood.items()}
    ood_rows = {name: rows for name, (rows, _, _) in sets.items()}
    ood_scores = {name: scores for name, (_, scores, _) in sets.items()}
    threshold = getattr(detector, "offset_", None)
    result = measure_detector(detector, id_rows, id_scores, ood_rows, ood_scores)
    # The members of an ensemble have no threshold of their own.
    members = {
        name: measure_scores(
            scores, {of_set: found[name] for of_set, (_, _, found) in sets.items()}, None
        )
        for name, scores in id_members.items()
    }
    report = MetricsTable(
        {str(arguments.detector): result}
        | {f"  member {name}": of_member for name, of_member in members.items()}
    )
    if arguments.json:
        figures, *of_members = report.to_dict().values()
        # Feature files have no labels, so the accuracy of the classifier is unknown.
        known = {name: value for name, value in figures.items() if "accuracy" not in name}
        if members:
            figures_of = {
                name: {key: found[key] for key in ("sets", "mean")}
                for name, found in zip(members, of_members, strict=True)
            }
            known["members"] = figures_of
        print(json.dumps({"convention": "in-distribution is positive; fractions", **known}))
    else:
        print(report)
        if threshold is not None:
            flagged = {ID_NAME: result.id_flagged}
            flagged |= {name: ood_set.flagged for name, ood_set in result.sets.items()}
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
                # One line cannot show the thresholds of several predicted classes.
                threshold=None if hasattr(detector, "class_offsets_") else threshold,
            )


def inspect(arguments: Namespace) -> None:
    """Show what a detector file holds."""
    detector, document = load(arguments.detector), read_document(arguments.detector)
    threshold = describe_threshold(detector) or {}
    facts = {
        "detector": type(detector).__name__,
        "versions": document["versions"],
        "schema": document["schema"],
        "classes": detector.head_.n_classes,
        "features": detector.n_features_in_,
        "feature_names": document["fitted"]["feature_names"],
        "parameters": document["parameters"],
        "shaping": document["fitted"].get("shaping"),
        "rows_fitted": detector.n_samples_seen_,
        **describe_weights(detector),
        **describe_agreement(detector),
        **describe_members(detector, document),
        "threshold": threshold.get("threshold"),
        "threshold_method": threshold.get("method"),
        "contamination": threshold.get("contamination"),
        "calibration": asdict(detector.calibration_) if hasattr(detector, "calibration_") else None,
        **describe_classes(detector),
    }
    if arguments.json:
        print(json.dumps(facts, indent=2))
        return
    for member in facts.pop("members", []):
        facts[f"member_{member.pop('name')}"] = ", ".join(
            str(value) if name == "detector" else f"{name.replace('_', ' ')} {value}"
            for name, value in member.items()
        )
    # Each value of the record of `calibrate` takes a line. Without one, `fit` set the threshold.
    record = facts.pop("calibration")
    facts |= (
        {"calibration": None}
        if record is None
        else {f"calibration_{name}": value for name, value in record.items()}
    )
    width = max(map(len, facts))
    for name, value in facts.items():
        if isinstance(value, dict):
            value = json.dumps(value)
        print(f"{name.replace('_', ' '):<{width}}  {'none' if value is None else value}")


def make_shaping(named: tuple[str, dict[str, float]] | None) -> Any:
    """Return the shaping with a parsed name and options."""
    if named is None:
        return None
    name, options = named
    classes = {public.lower(): getattr(shaping, public) for public in shaping.__all__}
    return classes[name](**options)
