"""The subcommands of ``skdice`` and their arguments.

This module imports the standard library only: see `skdice.cli._main`.
"""

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

from skdice._compat.version import __version__
from skdice.cli import _argument_types as types
from skdice.cli import _options as options
from skdice.cli._parser import Parser, PrintCompletion

OVERVIEW = """\
Detect out-of-distribution (OOD) inputs of a trained classifier, from its
penultimate features and its last linear layer.
"""
FIRST_STEPS = """\
skdice demo shows on real data in the package what skdice does. With a network of
your own, take these steps:

  skdice extract resnet50.pt2 images/train -o train.npy --head-output head.npz
  skdice fit train.npy --head head.npz --detector ensemble -o det.safetensors
  skdice calibrate det.safetensors heldout.npy --method conformal
  skdice score det.safetensors new.npy -o new.csv
  skdice monitor det.safetensors new.npy --state state.json

skdice extract runs the network on the images of a folder. Run it for each of the
data sets: heldout.npy and new.npy come from it, too.
"""
MORE_STEPS = """\
With known OOD inputs, search measures which detector suits the network, and
evaluate and report measure a detector:

  skdice search train.npy --head head.npz --ood textures.npy -o det.safetensors
  skdice evaluate det.safetensors --id test.npy --ood textures.npy --ood svhn.h5
"""
FILES = """\
A feature file is a .npy, .npz, .safetensors, .h5, .zarr, .parquet, .csv or .pt
file. A folder of feature files, or a quoted pattern such as 'train-*.npy', is
read as one matrix in the sorted order of the names, so number the files with
leading zeros. Files are read in blocks and may be larger than memory. Of a .csv
file the numeric columns are read, and its first line must name the columns. The
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
SEARCH = """\
The detectors are fitted on four fifths of the features and measured on the rest,
and on the OOD sets. The detector with the best mean AUROC is fitted again on all
features. Its figures are a little too good, because it was chosen by them:
measure it on other rows by 'skdice evaluate', and calibrate it.
"""
MONITOR = """\
The state file keeps the counts, the evidence and the digests of the counted
files from call to call. It is written once, after all files of a call: an
interrupted call leaves the old state and can be repeated, and so can a call
during which another process wrote the state. After an alarm the command goes on
counting and keeps the exit code 3; begin another state file when the cause is
mended. The detector must be calibrated (skdice calibrate). The guarantee assumes
that good rows are independent of one another, which frames of one video are not.

  skdice monitor det.safetensors monday.npy --state state.json
  skdice monitor det.safetensors tuesday.npy --state state.json || notify
"""
SUMMARIES = {
    "demo": "measure which score and how much pruning suit a network, on real data in the package",
    "extract": "extract penultimate features and the head from a saved torch classifier",
    "fit": "fit a detector on in-distribution features and save it",
    "search": "choose a sparsity or the ensemble by known OOD sets, and save the detector",
    "calibrate": "set the threshold of a detector from held-out in-distribution features",
    "score": "score features: a higher score is more in-distribution, and the label -1 means OOD",
    "monitor": "watch new features for more OOD rows than promised; exit code 3 means an alarm",
    "evaluate": "measure a detector on in-distribution features and on named OOD sets",
    "report": "write what a detector is, what it promises and how it did, as a page to sign",
    "inspect": "show what a detector file holds",
}


def build_parser() -> Parser:
    """Return the parser of the command and its subcommands.

    The parsed ``run`` names the function that runs the subcommand, as ``module.function``. It is
    None if there is no subcommand.
    """
    parser = Parser(
        prog="skdice",
        description=f"{OVERVIEW}\n{FIRST_STEPS}\n{MORE_STEPS}",
        epilog=FILES + "\n'skdice COMMAND --help' shows the options of a command.",
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=None)
    parser.add_argument("--version", action="version", version=f"skdice {__version__}")
    parser.add_argument(
        "--print-completion",
        action=PrintCompletion,
        help="print the script that completes commands, options and file names in a shell",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=Parser)

    for run, add_arguments, epilog in (
        ("_demo.demo", _add_demo, None),
        ("_extract.extract", _add_extract, EXTRACT),
        ("_commands.fit", _add_fit, FILES),
        ("_search.search", _add_search, f"{SEARCH}\n{FILES}"),
        ("_commands.calibrate", _add_calibrate, FILES),
        ("_score.score", _add_score, FILES),
        ("_monitor.monitor", _add_monitor, f"{MONITOR}\n{FILES}"),
        ("_commands.evaluate", _add_evaluate, FILES),
        ("_report.report", _add_report, FILES),
        ("_commands.inspect", _add_inspect, None),
    ):
        name = run.split(".")[1]
        summary = SUMMARIES[name]
        command = commands.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=epilog,
            formatter_class=RawDescriptionHelpFormatter,
        )
        command.set_defaults(run=run)
        add_arguments(command)
    return parser


def _add_demo(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--output",
        type=types.path,
        default=Path("skdice-demo"),
        metavar="FOLDER",
        help="folder for the picture and the detector (default: %(default)s)",
    )


def _add_extract(parser: ArgumentParser) -> None:
    parser.add_argument(
        "model",
        type=types.path,
        metavar="MODEL",
        help="a TorchScript file or an exported program (.pt2); use only files that you trust, "
        "because a program is code",
    )
    parser.add_argument(
        "data",
        type=types.not_empty,
        metavar="DATA",
        help="a folder of images, or a file with an array of inputs as the model takes them",
    )
    parser.add_argument("--key", help="name of the array in the file of inputs")
    parser.add_argument("--layer", help="name of the classification layer (default: it is found)")
    parser.add_argument(
        "--head-output",
        type=types.ending_in(*types.HEAD_ENDINGS),
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
        type=types.positive,
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
    options.add_output(
        parser,
        types.FEATURE_ENDINGS,
        "feature file to write; labels are saved beside it",
        required=True,
    )
    options.add_common(parser)


def _add_fit(parser: ArgumentParser) -> None:
    options.add_features(parser)
    options.add_head(parser)
    parser.add_argument(
        "--detector",
        choices=["dice", "vim", "fdbd", "ensemble"],
        default="dice",
        help="DICE, ViM or fDBD, or the ensemble of four detectors that needs no choice; "
        "--sparsity, --score and --shaping are options of dice alone (default: %(default)s)",
    )
    parser.add_argument(
        "--sparsity",
        type=types.sparsity,
        metavar="FRACTION",
        help="fraction of the weights that is pruned, from 0 to below 1 (default: 0.1, or 0 with "
        "--head identity)",
    )
    options.add_score_and_shaping(parser)
    options.add_contamination(parser, 0.05, "default: %(default)s")
    options.add_scheduler(parser)
    options.add_detector_output(parser, required=True)
    options.add_common(parser)


def _add_search(parser: ArgumentParser) -> None:
    options.add_features(parser)
    options.add_head(parser)
    options.add_ood_sets(parser)
    parser.add_argument(
        "--id",
        type=types.not_empty,
        metavar="FILE",
        help="in-distribution features to measure on, which the network has not seen (default: a "
        "fifth of FEATURES, on which nothing is fitted)",
    )
    options.add_score_and_shaping(parser)
    options.add_contamination(parser, 0.05, "default: %(default)s")
    options.add_detector_output(parser, " (default: nothing is written)")
    options.add_common(parser)


def _add_calibrate(parser: ArgumentParser) -> None:
    options.add_detector(parser)
    options.add_features(parser)
    options.add_contamination(parser, None, "default: the one in force in the detector file")
    parser.add_argument(
        "--method",
        choices=["quantile", "conformal"],
        help="quantile: the contamination holds for these rows; conformal: its expectation holds "
        "for future rows (default: the method of the detector file)",
    )
    parser.add_argument(
        "--confidence",
        type=types.number_or_none,
        help="with conformal: the probability that the contamination holds for future rows, not "
        "only its expectation; or none (default: the one of the detector file)",
    )
    parser.add_argument(
        "--by",
        choices=["prediction", "none"],
        help="with conformal: prediction gives each predicted class a threshold of its own "
        "(default: the way of the detector file)",
    )
    options.add_scheduler(parser)
    options.add_detector_output(parser, " (default: the file that was read is replaced)")
    options.add_common(parser)


def _add_score(parser: ArgumentParser) -> None:
    options.add_detector(parser)
    options.add_features(parser)
    options.add_scheduler(parser)
    options.add_output(
        parser,
        types.SCORE_ENDINGS,
        ".csv, .parquet or .jsonl file with the score of each row, its p-value after a conformal "
        "calibration, whether it is OOD, and the member of an ensemble that objects most; or .npy "
        "file for the scores alone (default: standard output has a line per row, with score and "
        "label separated by a tab, or with --json an object per line)",
    )
    options.add_common(parser)


def _add_monitor(parser: ArgumentParser) -> None:
    options.add_detector(parser)
    parser.add_argument(
        "features",
        type=types.not_empty,
        nargs="+",
        metavar="FEATURES",
        help="feature files to read, in the order of time",
    )
    parser.add_argument("--key", help="name of the array in the feature files")
    parser.add_argument(
        "--state",
        type=types.ending_in(".json"),
        required=True,
        metavar="FILE",
        help=".json file that keeps the state; it is made if it is not there",
    )
    guarantee = parser.add_mutually_exclusive_group()
    guarantee.add_argument(
        "--false-alarm",
        type=types.probability,
        metavar="P",
        help="probability of ever raising a false alarm, however long one watches (default: 0.01); "
        "for a new state file",
    )
    guarantee.add_argument(
        "--run-length",
        type=types.run_length,
        metavar="ROWS",
        help="instead: the average number of good rows between false alarms, which finds a change "
        "late in a long stream sooner; for a new state file",
    )
    parser.add_argument(
        "--again", action="store_true", help="count files whose contents were counted already"
    )
    options.add_png(parser, "evidence and rate along the whole stream, from the first call on")
    options.add_common(parser)


def _add_evaluate(parser: ArgumentParser) -> None:
    options.add_measurement(parser)
    options.add_png(parser, "a histogram of the scores")
    options.add_common(parser)


def _add_report(parser: ArgumentParser) -> None:
    options.add_measurement(parser)
    for name, rows in (("calibration", "calibrated"), ("training", "fitted")):
        parser.add_argument(
            f"--{name}",
            type=types.not_empty,
            metavar="FILE",
            help=f"the rows that the detector was {rows} on, which the report checks and names",
        )
    options.add_output(
        parser,
        types.REPORT_ENDINGS,
        ".html file to read, print and sign, or .md file for a model card",
        required=True,
    )
    options.add_common(parser)


def _add_inspect(parser: ArgumentParser) -> None:
    options.add_detector(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
