"""The arguments of the ``skdice`` command, and all that can be wrong with them by themselves.

This module imports the standard library only: see `skdice.cli._main`.
"""

from __future__ import annotations

import argparse
from argparse import ArgumentParser, ArgumentTypeError, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from skdice._version import __version__

# These names are repeated here because the modules that define them import NumPy. A test
# compares them with `skdice._scores` and `skdice.shaping`.
SCORES = ("energy", "max_logit", "msp", "gen")
SHAPINGS = {
    "ash": ("quantile",),
    "react": ("quantile", "threshold"),
    "scale": ("quantile",),
    "vra": ("lower_quantile", "upper_quantile", "alpha", "beta"),
}
# The name of the in-distribution set among the sets of an evaluation.
ID_NAME = "in-distribution"

OVERVIEW = """\
Detect out-of-distribution (OOD) inputs of a trained classifier, from its
penultimate features and its last linear layer.

  skdice demo
  skdice extract resnet50.pt2 images/train -o train.npy --head-output head.npz
  skdice fit train.npy --head head.npz -o det.safetensors
  skdice calibrate det.safetensors heldout.npy
  skdice score det.safetensors new.npy | head
  skdice evaluate det.safetensors --id test.npy --ood textures.npy --ood svhn.h5
"""
FILES = """\
A feature file is a .npy, .npz, .safetensors, .h5, .zarr, .parquet or .pt file.
A folder of feature files, or a quoted pattern such as 'train-*.npy', is read
as one matrix in the sorted order of the names, so number the files with
leading zeros. Files are read in blocks and may be larger than memory. The
feature file named - is a .npy file on standard input. Open .h5 and .zarr files
only if you trust their source, because a damaged one can crash the libraries
that decode them.
"""
EXTRACT = """\
Images are read in the sorted order of their names. If the images lie in one
folder per class, the labels are saved beside the features (train.labels.npy
beside train.npy); a label is the position of the class among the sorted names
of the folders. An extraction that was interrupted continues where it stopped
when the same command is run again.

  skdice extract resnet50.pt2 imagenet/train -o train.npy --head-output head.npz
  skdice fit train.npy --head head.npz -o det.safetensors
"""


def build_parser() -> ArgumentParser:
    """Return the parser of the command and its subcommands.

    The parsed ``run`` names the function that runs the subcommand, as ``module.function``.
    """
    parser = ArgumentParser(
        prog="skdice",
        description=OVERVIEW,
        epilog=FILES + "\n'skdice COMMAND --help' shows the options of a command.",
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"skdice {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(run: str, summary: str, *, epilog: str | None = FILES) -> ArgumentParser:
        command = commands.add_parser(
            run.split(".")[1],
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=epilog,
            formatter_class=RawDescriptionHelpFormatter,
        )
        command.set_defaults(run=run)
        return command

    _add_demo(
        add(
            "_demo.demo",
            "measure which score and how much pruning suit a network, on real data in the package",
            epilog=None,
        )
    )
    _add_extract(
        add(
            "_extract.extract",
            "extract penultimate features and the head from a saved torch classifier",
            epilog=EXTRACT,
        )
    )
    _add_fit(add("_commands.fit", "fit a detector on in-distribution features and save it"))
    _add_calibrate(
        add(
            "_commands.calibrate",
            "set the threshold of a detector from held-out in-distribution features",
        )
    )
    _add_score(
        add(
            "_commands.score",
            "score features: a higher score is more in-distribution, and the label -1 means OOD",
        )
    )
    _add_evaluate(
        add(
            "_commands.evaluate",
            "measure a detector on in-distribution features and on named OOD sets",
        )
    )
    _add_report(
        add(
            "_report.report",
            "write what a detector is, what it promises and how it did, as a page to sign",
        )
    )
    inspect = add("_commands.inspect", "show what a detector file holds", epilog=None)
    _detector(inspect)
    inspect.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _add_demo(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--output",
        type=_path,
        default=Path("skdice-demo"),
        metavar="FOLDER",
        help="folder for the picture and the detector (default: %(default)s)",
    )


def _add_extract(parser: ArgumentParser) -> None:
    parser.add_argument(
        "model",
        type=_path,
        metavar="MODEL",
        help="a TorchScript file or an exported program (.pt2); use only files that you trust, "
        "because a program is code",
    )
    parser.add_argument(
        "data",
        type=_not_empty,
        metavar="DATA",
        help="a folder of images, or a file with an array of inputs as the model takes them",
    )
    parser.add_argument("--key", help="name of the array in the file of inputs")
    parser.add_argument("--layer", help="name of the classification layer (default: it is found)")
    parser.add_argument(
        "--head-output",
        type=_path,
        metavar="FILE",
        help=".safetensors or .npz file for the weight and the bias of that layer",
    )
    parser.add_argument(
        "--device", help="device that runs the model: cpu, cuda, cuda:1, mps (default: cpu)"
    )
    parser.add_argument(
        "--dtype",
        choices=["float16", "float32", "float64"],
        help="dtype of the features (default: the dtype that the model computes)",
    )
    parser.add_argument(
        "--batch-size",
        type=_positive,
        default=64,
        metavar="N",
        help="inputs per batch (default: %(default)s)",
    )
    images = parser.add_argument_group("images")
    images.add_argument(
        "--resize",
        type=int,
        default=256,
        metavar="PIXELS",
        help="length of the shorter side after resizing (default: %(default)s)",
    )
    images.add_argument(
        "--crop",
        type=int,
        default=224,
        metavar="PIXELS",
        help="side of the square that is cut out of the centre (default: %(default)s)",
    )
    images.add_argument(
        "--mean",
        type=float,
        nargs="+",
        default=[0.485, 0.456, 0.406],
        help="mean of each channel, one value for grey images (default: ImageNet's)",
    )
    images.add_argument(
        "--std",
        type=float,
        nargs="+",
        default=[0.229, 0.224, 0.225],
        help="standard deviation of each channel, one value for grey images (default: ImageNet's)",
    )
    _output(parser, "feature file to write; labels are saved beside it", required=True)
    _common(parser)


def _add_fit(parser: ArgumentParser) -> None:
    _features(parser)
    parser.add_argument(
        "--head",
        type=_not_empty,
        required=True,
        metavar="FILE",
        help="file with the last linear layer (.npz, .safetensors, .pt, ...), or 'identity' if the "
        "features are logits already",
    )
    parser.add_argument("--layer", help="name of that layer in the file; 'fc' reads fc.weight")
    parser.add_argument(
        "--detector",
        choices=["dice", "vim", "fdbd"],
        default="dice",
        help="the detector: DICE, ViM or fDBD; --sparsity, --score and --shaping are options of "
        "dice alone (default: %(default)s)",
    )
    parser.add_argument(
        "--sparsity",
        type=_sparsity,
        metavar="FRACTION",
        help="fraction of the weights that is pruned, from 0 to below 1 (default: 0.1, or 0 with "
        "--head identity)",
    )
    parser.add_argument(
        "--score", choices=SCORES, help="score of a row from its logits (default: energy)"
    )
    parser.add_argument(
        "--shaping",
        type=_shaping,
        metavar="NAME[:OPTIONS]",
        help=f"shaping of the features: {', '.join(SHAPINGS)}; with options for example "
        "react:threshold=1.0 or vra:lower_quantile=0.5,upper_quantile=0.9",
    )
    _contamination(parser, 0.05, "default: %(default)s")
    _scheduler(parser)
    _output(parser, "detector file to write", required=True)
    _common(parser)


def _add_calibrate(parser: ArgumentParser) -> None:
    _detector(parser)
    _features(parser)
    _contamination(parser, None, "default: the one in force in the detector file")
    parser.add_argument(
        "--method",
        choices=["quantile", "conformal"],
        help="quantile: the contamination holds for these rows; conformal: its expectation holds "
        "for future rows (default: the method of the detector file)",
    )
    parser.add_argument(
        "--confidence",
        type=float,
        help="with conformal: the probability that the contamination holds for future rows, not "
        "only its expectation (default: the one of the detector file)",
    )
    _scheduler(parser)
    _output(parser, "detector file to write (default: the file that was read is replaced)")
    _common(parser)


def _add_score(parser: ArgumentParser) -> None:
    _detector(parser)
    _features(parser)
    _scheduler(parser)
    _output(
        parser,
        ".npy file for the scores, or .parquet file for scores and labels (default: standard "
        "output has a line per row, with score and label separated by a tab, or with --json an "
        "object per line)",
    )
    _common(parser)


def _add_evaluate(parser: ArgumentParser) -> None:
    _detector(parser)
    _named_sets(parser)
    parser.add_argument(
        "--png", type=_png, metavar="FILE", help="picture to draw: a histogram of the scores"
    )
    _common(parser)


def _add_report(parser: ArgumentParser) -> None:
    _detector(parser)
    _named_sets(parser)
    parser.add_argument(
        "-o",
        "--output",
        type=_page,
        required=True,
        metavar="FILE",
        help=".html file to read, print and sign, or .md file for a model card",
    )
    _common(parser)


def _named_sets(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--id", type=_not_empty, required=True, metavar="FILE", help="in-distribution features"
    )
    parser.add_argument(
        "--ood",
        required=True,
        type=_named_file,
        action=_AddNamedFile,
        metavar="[NAME=]FILE",
        help="features of an OOD set; repeat the option for more sets (default name: the name of "
        "the file without its ending)",
    )
    parser.add_argument("--key", help="name of the array in the files")


def _detector(parser: ArgumentParser) -> None:
    parser.add_argument("detector", type=_path, metavar="DETECTOR", help="detector file to read")


def _features(parser: ArgumentParser) -> None:
    parser.add_argument(
        "features", type=_not_empty, metavar="FEATURES", help="feature file to read"
    )
    parser.add_argument("--key", help="name of the array in the feature file")


def _scheduler(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="compute on the Dask cluster at this address, such as tcp://10.0.0.1:8786; the "
        "workers read the feature file under the path given here",
    )


def _contamination(parser: ArgumentParser, default: float | None, shown: str) -> None:
    parser.add_argument(
        "--contamination",
        type=_share,
        default=default,
        metavar="SHARE",
        help=f"share of in-distribution rows below the threshold, above 0 and at most 0.5 "
        f"({shown})",
    )


def _output(parser: ArgumentParser, help_: str, *, required: bool = False) -> None:
    parser.add_argument("-o", "--output", type=_path, metavar="FILE", help=help_, required=required)


def _common(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print results as JSON")
    parser.add_argument("--quiet", action="store_true", help="print no progress and no summary")


# Types of arguments. argparse prints the message of an ArgumentTypeError after the argument's name.


def _not_empty(text: str) -> str:
    # An empty path would mean the current folder. It comes from an empty variable of the shell.
    if not text:
        raise ArgumentTypeError("expected a path, got ''")
    return text


def _path(text: str) -> Path:
    return Path(_not_empty(text))


def _png(text: str) -> Path:
    path = _path(text)
    if path.suffix != ".png":
        raise ArgumentTypeError(f"expected a name that ends in .png, got {text!r}")
    return path


def _page(text: str) -> Path:
    path = _path(text)
    if path.suffix not in (".html", ".md"):
        raise ArgumentTypeError(f"expected a name that ends in .html or .md, got {text!r}")
    return path


def _number_in(expected: str, is_valid: Callable[[float], bool]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if is_valid(value):
            return value
        # The authors' code and other packages take percentages.
        is_percent = 1 < value <= 100 and is_valid(value / 100)
        hint = f"; did you mean {value / 100:g}?" if is_percent else ""
        raise ArgumentTypeError(f"expected {expected}, got {text!r}{hint}")

    return parse


_sparsity = _number_in("a fraction from 0 to below 1", lambda value: 0 <= value < 1)
_share = _number_in("a fraction above 0 and at most 0.5", lambda value: 0 < value <= 0.5)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def _shaping(text: str) -> tuple[str, dict[str, float]]:
    """Split ``react:quantile=0.9`` into the name and the options of a shaping."""
    name, _, options = text.partition(":")
    name = name.lower()
    if name not in SHAPINGS:
        raise ArgumentTypeError(f"expected one of {', '.join(SHAPINGS)}, got {name!r}")
    known = SHAPINGS[name]
    values = {}
    for option in filter(None, options.split(",")):
        key, _, value = option.partition("=")
        try:
            values[key] = float(value)
        except ValueError:
            known = ()
        if key not in known:
            raise ArgumentTypeError(
                f"expected {name}:NAME=NUMBER[,NAME=NUMBER] with names among "
                f"{', '.join(SHAPINGS[name])}, got {text!r}"
            )
    return name, values


def _named_file(text: str) -> tuple[str, str]:
    """Split ``NAME=FILE``. Without a name, the file's name without its ending is taken."""
    name, equals, path = _not_empty(text).partition("=")
    if not equals or Path(text).exists():  # An equals sign may be part of a path.
        name, path = Path(text).stem, text
    elif not (name and path):
        raise ArgumentTypeError(f"expected NAME=FILE, got {text!r}")
    if name == ID_NAME:
        raise ArgumentTypeError(f"expected another name than {ID_NAME!r}, got {text!r}")
    return name, path


class _AddNamedFile(argparse.Action):
    """Collect the values of a repeated ``NAME=FILE`` in a dictionary."""

    def __call__(
        self,
        parser: ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        assert values is not None
        name, path = tuple(values)
        files = dict(getattr(namespace, self.dest) or {})
        if name in files:
            raise argparse.ArgumentError(
                self, f"the name {name!r} is given twice, to {files[name]} and to {path}"
            )
        setattr(namespace, self.dest, {**files, name: path})
