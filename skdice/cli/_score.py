"""``skdice score`` says of each row what a detector finds."""

import sys
from argparse import Namespace
from typing import Any

from skdice._persistence.files import load
from skdice.cli._files import (
    file_name_in_errors,
    open_rows_or_chunks,
    print_result,
    refuse_overwriting,
)
from skdice.io import save_scores
from skdice.io._score_files import json_lines, numbered_verdicts


def score(arguments: Namespace) -> None:
    """Score a feature file. The verdicts are written to a file or to standard output."""
    if arguments.output is not None:
        refuse_overwriting(arguments.output, arguments.features, arguments.detector)
    detector = load(arguments.detector).set_params(verbose=arguments.verbose)
    with file_name_in_errors(arguments.features), open_rows_or_chunks(arguments) as features:
        if arguments.output is None:
            print_verdicts(detector, features, as_json=arguments.json)
            return
        n_rows = save_scores(arguments.output, detector, features)
        print_result(
            arguments,
            {"output": str(arguments.output), "rows": n_rows},
            "scored {rows:,} rows; wrote {output}",
        )


def print_verdicts(detector: Any, features: Any, *, as_json: bool) -> None:
    """Print a line per row: the score, and the label if the detector has a threshold."""
    for block in numbered_verdicts(detector, features)[1]:
        if as_json:
            sys.stdout.writelines(json_lines(block))
            continue
        # Not tolist(): it would print more digits than a score in single precision has.
        scores = list(map(str, block["score"]))
        if "is_ood" not in block:
            print("\n".join(scores))
            continue
        for text, is_ood in zip(scores, block["is_ood"], strict=True):
            print(text, -1 if is_ood else 1, sep="\t")
