"""Arguments that several subcommands share.

This module imports the standard library only: see `skdice.cli._main`.
"""

from argparse import ArgumentParser

from skdice.cli import _argument_types as types


def add_detector(parser: ArgumentParser) -> None:
    """Add the detector file to read."""
    parser.add_argument(
        "detector", type=types.path, metavar="DETECTOR", help="detector file to read"
    )


def add_features(parser: ArgumentParser) -> None:
    """Add the feature file to read, and the name of the array in it."""
    parser.add_argument(
        "features", type=types.not_empty, metavar="FEATURES", help="feature file to read"
    )
    parser.add_argument("--key", help="name of the array in the feature file")


def add_head(parser: ArgumentParser) -> None:
    """Add the file of the head, and the name of the layer in it."""
    parser.add_argument(
        "--head",
        type=types.not_empty,
        required=True,
        metavar="FILE",
        help="file with the last linear layer (.npz, .safetensors, .pt, ...), or 'identity' if the "
        "features are logits already",
    )
    parser.add_argument("--layer", help="name of that layer in the file; 'fc' reads fc.weight")


def add_score_and_shaping(parser: ArgumentParser) -> None:
    """Add the options of DICE beside the sparsity."""
    parser.add_argument(
        "--score", choices=types.SCORES, help="score of a row from its logits (default: energy)"
    )
    parser.add_argument(
        "--shaping",
        type=types.shaping_options,
        metavar="NAME[:OPTIONS]",
        help=f"shaping of the features: {', '.join(types.SHAPINGS)}; with options for example "
        "react:threshold=1.0 or vra:lower_quantile=0.5,upper_quantile=0.9",
    )


def add_ood_sets(parser: ArgumentParser) -> None:
    """Add the named files of out-of-distribution features."""
    parser.add_argument(
        "--ood",
        required=True,
        type=types.named_file,
        action=types.AddNamedFile,
        metavar="[NAME=]FILE",
        help="features of an OOD set; repeat the option for more sets (default name: the name of "
        "the file without its ending)",
    )


def add_measurement(parser: ArgumentParser) -> None:
    """Add the detector file and the files that it is measured on."""
    add_detector(parser)
    parser.add_argument(
        "--id", type=types.not_empty, required=True, metavar="FILE", help="in-distribution features"
    )
    add_ood_sets(parser)
    parser.add_argument("--key", help="name of the array in the files")


def add_png(parser: ArgumentParser, drawing: str) -> None:
    """Add the picture to draw."""
    parser.add_argument(
        "--png", type=types.ending_in(".png"), metavar="FILE", help=f"picture to draw: {drawing}"
    )


def add_scheduler(parser: ArgumentParser) -> None:
    """Add the address of a Dask cluster."""
    parser.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="compute on the Dask cluster at this address, such as tcp://10.0.0.1:8786; the "
        "workers read the feature file under the path given here",
    )


def add_contamination(parser: ArgumentParser, default: float | None, shown: str) -> None:
    """Add the contamination."""
    parser.add_argument(
        "--contamination",
        type=types.share,
        default=default,
        metavar="SHARE",
        help=f"share of in-distribution rows below the threshold, above 0 and at most 0.5 "
        f"({shown})",
    )


def add_output(
    parser: ArgumentParser, endings: tuple[str, ...], help_: str, *, required: bool = False
) -> None:
    """Add the file to write, whose ending must be one of those given."""
    parser.add_argument(
        "-o",
        "--output",
        type=types.ending_in(*endings),
        metavar="FILE",
        help=help_,
        required=required,
    )


def add_detector_output(parser: ArgumentParser, more: str = "", *, required: bool = False) -> None:
    """Add the detector file to write."""
    help_ = f".safetensors file to write the detector to{more}"
    add_output(parser, types.DETECTOR_ENDINGS, help_, required=required)


def add_common(parser: ArgumentParser) -> None:
    """Add what nearly all subcommands know."""
    parser.add_argument("--json", action="store_true", help="print results as JSON")
    parser.add_argument("--quiet", action="store_true", help="print no progress and no summary")
