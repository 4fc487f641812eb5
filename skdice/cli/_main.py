"""Arguments, exit codes and error lines of the ``skdice`` command."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import warnings
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import skdice
from skdice._scores import SCORES
from skdice.cli import _commands, _extract
from skdice.cli._demo import run_demo

# What a shell and argparse itself use for a usage or input error.
EXIT_USAGE = 2
# What a shell reports for a program whose reader went away.
EXIT_BROKEN_PIPE = 141
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143

OVERVIEW = """\
Out-of-distribution detection for any trained classifier, from its penultimate features and
its last linear layer.

  skdice demo
  skdice extract resnet50.pt2 images/ -o new.npy
  skdice fit train.npy --head resnet50.safetensors --layer fc --sparsity 0.7 -o det.safetensors
  skdice calibrate det.safetensors heldout.npy
  skdice score det.safetensors new.npy | head
  skdice evaluate det.safetensors --id test.npy --ood textures.npy --ood svhn=other/svhn.h5
"""
FILES = """\
Feature files are .npy, .npz, .safetensors, .h5, .zarr, .parquet, .pt, or a folder or quoted
pattern of them, read as one matrix in the sorted order of their names (so pad numbers with
zeros). They are read block by block and may be larger than memory. A feature file named - is
a .npy file on standard input.
"""

EXTRACT = """\
Images are read in the sorted order of their names. Where they lie in one folder per class, the
places of the classes among the sorted names are kept as labels: of train.npy, in
train.labels.npy. An interrupted extraction goes on where it stopped when called again.

  skdice extract resnet50.pt2 imagenet/train -o train.npy --head-output head.safetensors
  skdice fit train.npy --head head.safetensors -o det.safetensors
"""


def build_parser() -> ArgumentParser:
    """Return the parser of the command and its subcommands."""
    parser = ArgumentParser(
        prog="skdice",
        description=OVERVIEW,
        epilog=FILES + "\nskdice COMMAND --help tells the options of a command.",
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"skdice {skdice.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(name: str, run: Callable[[argparse.Namespace], None], help_: str) -> ArgumentParser:
        command = commands.add_parser(
            name,
            help=help_,
            description=f"{help_[0].upper()}{help_[1:]}.",
            epilog=None if name in ("demo", "inspect") else FILES,
            formatter_class=RawDescriptionHelpFormatter,
        )
        command.set_defaults(run=run)
        return command

    fit = add("fit", _commands.fit, "fit a detector on in-distribution features and save it")
    _features(fit)
    fit.add_argument(
        "--head",
        required=True,
        metavar="FILE",
        help="file with the last linear layer (.npz, .safetensors, .pt, ...), or 'identity' if the "
        "features are logits already",
    )
    fit.add_argument("--layer", help="name of that layer in the file; 'fc' reads fc.weight")
    fit.add_argument(
        "--sparsity",
        type=float,
        help="fraction of the weights pruned, 0 to below 1 (default: 0.7; for logits 0)",
    )
    fit.add_argument("--score", choices=SCORES, default="energy", help="default: %(default)s")
    fit.add_argument(
        "--shaping",
        metavar="NAME[:OPTIONS]",
        help="react, vra, ash or scale; react:threshold=1.0 or react:quantile=0.9, say",
    )
    _contamination(fit, 0.05)
    _scheduler(fit)
    _output(fit, "the detector file", required=True)
    _common(fit)

    extract = add(
        "extract",
        _extract.extract,
        "extract penultimate features and the head from a saved torch classifier",
    )
    extract.epilog = EXTRACT
    extract.add_argument(
        "model",
        type=Path,
        metavar="MODEL",
        help="a TorchScript file or an exported program (.pt2); it is code: use what you trust",
    )
    extract.add_argument(
        "data",
        metavar="DATA",
        help="a folder of images, or a file with an array of inputs as the model takes them",
    )
    extract.add_argument("--key", help="name of the array in the file of inputs")
    extract.add_argument("--layer", help="name of the classification layer (default: it is found)")
    extract.add_argument(
        "--head-output",
        type=Path,
        metavar="FILE",
        help="a .safetensors or .npz file for the weight and bias of that layer",
    )
    extract.add_argument("--device", help="where to run: cpu, cuda, cuda:1, mps (default: cpu)")
    extract.add_argument(
        "--dtype", choices=["float16", "float32", "float64"], help="default: the model's"
    )
    extract.add_argument("--batch-size", type=int, default=64, metavar="N", help="default: 64")
    images = extract.add_argument_group("images")
    images.add_argument("--resize", type=int, default=256, help="shorter side (default: 256)")
    images.add_argument("--crop", type=int, default=224, help="pixels cut out (default: 224)")
    images.add_argument(
        "--mean",
        type=float,
        nargs="+",
        default=[0.485, 0.456, 0.406],
        help="of each channel, one value for grey (default: ImageNet's)",
    )
    images.add_argument(
        "--std",
        type=float,
        nargs="+",
        default=[0.229, 0.224, 0.225],
        help="likewise",
    )
    _output(extract, "the feature file; labels go beside it", required=True)
    _common(extract)

    calibrate = add(
        "calibrate",
        _commands.calibrate,
        "set the threshold of a detector from held-out in-distribution features",
    )
    _detector(calibrate)
    _features(calibrate)
    _contamination(calibrate, None)
    _scheduler(calibrate)
    calibrate.add_argument(
        "--method",
        choices=["quantile", "conformal"],
        default="quantile",
        help="the share of these rows, or a guarantee for future ones (default: %(default)s)",
    )
    _output(calibrate, "the new detector file (default: the old one is replaced)")
    _common(calibrate)

    score = add(
        "score",
        _commands.score,
        "score features: higher = more in-distribution; label +1 or -1 = out-of-distribution",
    )
    _detector(score)
    _features(score)
    _scheduler(score)
    _output(
        score,
        "a .npy file for the scores, or a .parquet file for score and label (default: a line per "
        "row on standard output, score and label with a tab between; with --json an "
        "object per line)",
    )
    _common(score)

    evaluate = add(
        "evaluate",
        _commands.evaluate,
        "measure a detector on in-distribution features and on named OOD sets",
    )
    _detector(evaluate)
    evaluate.add_argument("--id", required=True, metavar="FILE", help="in-distribution features")
    evaluate.add_argument(
        "--ood",
        required=True,
        action="append",
        metavar="[NAME=]FILE",
        help="features of an OOD set; repeat it for more",
    )
    evaluate.add_argument("--key", help="name of the array in the files")
    evaluate.add_argument("--png", type=Path, metavar="FILE", help="draw the histogram of scores")
    _common(evaluate)

    inspect = add("inspect", _commands.inspect, "show what a detector file holds")
    _detector(inspect)
    inspect.add_argument("--json", action="store_true", help="print JSON")

    demo = add(
        "demo",
        lambda arguments: run_demo(arguments.output),
        "measure which score, and how much pruning, suits a network, on embedded real data",
    )
    demo.add_argument(
        "--output",
        type=Path,
        default=Path("skdice-demo"),
        metavar="FOLDER",
        help="where the picture and the detector go (default: %(default)s)",
    )
    return parser


def _detector(parser: ArgumentParser) -> None:
    parser.add_argument("detector", type=Path, metavar="DETECTOR", help="a detector file")


def _features(parser: ArgumentParser) -> None:
    parser.add_argument("features", metavar="FEATURES", help="a feature file")
    parser.add_argument("--key", help="name of the array in the feature file")


def _scheduler(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="compute on a Dask cluster, such as tcp://10.0.0.1:8786, whose workers read the files "
        "under the path given here",
    )


def _contamination(parser: ArgumentParser, default: float | None) -> None:
    shown = "default: the detector's" if default is None else "default: %(default)s"
    parser.add_argument(
        "--contamination",
        type=float,
        default=default,
        help=f"share of these rows below the threshold, above 0 to 0.5 ({shown})",
    )


def _output(parser: ArgumentParser, help_: str, *, required: bool = False) -> None:
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help=help_, required=required)


def _common(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print results as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress bars, no summary")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Parameters
    ----------
    argv : sequence of str, default=None
        Arguments; None takes those of the process.

    Returns
    -------
    int
        0, or 2 for an input error, which is told in one line on stderr.
    """
    arguments = build_parser().parse_args(argv)
    if threading.current_thread() is threading.main_thread():
        # What schedulers send: an exit that cleans up behind itself.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_TERMINATED))
    arguments.verbose = int(sys.stderr.isatty() and not getattr(arguments, "quiet", False))
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            arguments.run(arguments)
            if sys.stdout is not None:  # None where the shell closed it
                sys.stdout.flush()
        except BrokenPipeError:
            # The reader has all it wants; keep Python from complaining at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return EXIT_BROKEN_PIPE
        except KeyboardInterrupt:
            print("skdice: interrupted", file=sys.stderr)
            return EXIT_INTERRUPTED
        except (OSError, ValueError, TypeError, ImportError, MemoryError) as error:
            message = " ".join(str(error).split()) or type(error).__name__
            for argument, option in (
                ("key=:", "--key:"),
                ("key=", "--key "),
                ("layer=", "--layer "),
            ):
                message = message.replace(argument, option)
            print(f"skdice: {message}", file=sys.stderr)
            return EXIT_USAGE
    return 0


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"skdice: warning: {message}", file=sys.stderr)
