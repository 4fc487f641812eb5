"""Reproduce the paper's CIFAR table with the authors' network, from images or from features.

    python benchmarks/reproduce_cifar.py --checkpoint checkpoint_100.pth.tar --data FOLDER \\
        --features FEATURES [--dataset cifar100] [--device cuda] [--output table.rst]
    python benchmarks/reproduce_cifar.py --features FEATURES

The checkpoints are in the repository of the paper (deeplearning-wisc/dice on GitHub), at
``checkpoints/CIFAR-10/densenet/`` and ``checkpoints/CIFAR-100/densenet/``. The folder --data holds
the unpacked archives:

=============  =========================  ======  ==============================================
set            place                      images  from
=============  =========================  ======  ==============================================
cifar10        cifar-10-batches-bin/      60,000  cifar-10-binary.tar.gz of
                                                  https://www.cs.toronto.edu/~kriz/cifar.html
cifar100       cifar-100-binary/          60,000  cifar-100-binary.tar.gz, there
svhn           test_32x32.mat             26,032  http://ufldl.stanford.edu/housenumbers/
lsun_crop      LSUN/                      10,000  https://www.dropbox.com/s/fhtsw1m3qxlwj6h/LSUN.tar.gz
lsun_resize    LSUN_resize/               10,000  https://www.dropbox.com/s/moqh2wh8696c3yl/LSUN_resize.tar.gz
isun           iSUN/                       8,925  https://www.dropbox.com/s/ssz7qxfqae0cca5/iSUN.tar.gz
places365      places365/                 10,000  http://data.csail.mit.edu/places/places365/test_256.tar
textures       dtd/images/                 5,640  dtd-r1.0.1.tar.gz of
                                                  https://www.robots.ox.ac.uk/~vgg/data/dtd/
=============  =========================  ======  ==============================================

The authors drew 10,000 of the 328,500 images of Places365 at random, and selected a part of SVHN
with a script. Their code does not say which images these are, so the figures for these two sets may
differ from the paper's. The script reads the binary form of CIFAR because that form needs no
pickle. It compares archives that are left in --data with the checksums below.

Images are scaled to a short side of 32, cropped to the centre and normalised. An interrupted run
can be started again, because existing feature files are kept. Without --data the table is made from
the feature files alone. FEATURES may be left out if SKDICE_DATA is set; the script then reads
``cifar10-densenet`` in that folder. The table has no published figures of the CIFAR networks,
because we could not read a public copy of them to check them.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import reproduction
from scipy.io import loadmat

from skdice.extraction._images import ImageFolder
from skdice.shaping import ReAct

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
MD5 = {
    "cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530",
    "cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8",
    "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
    "LSUN.tar.gz": "458a0a0ab8e5f1cb4516d7400568e460",
    "LSUN_resize.tar.gz": "278b7b31c8cb7e804a1465a8ce03a2dc",
    "dtd-r1.0.1.tar.gz": "fff73e5086ae6bdbea199a49dfb8a4c1",
}
PLACES = {
    "svhn": "test_32x32.mat",
    "lsun_crop": "LSUN",
    "lsun_resize": "LSUN_resize",
    "isun": "iSUN",
    "places365": "places365",
    "textures": "dtd/images",
}
SIZES = {
    "svhn": 26_032,
    "lsun_crop": 10_000,
    "lsun_resize": 10_000,
    "isun": 8_925,
    "places365": 10_000,
    "textures": 5_640,
}
NOTE = (
    "The paper's own figures for CIFAR are left out because we could not read a public copy of "
    "them to check them."
)
KEPT = f"""\
The score is the energy of the pruned head. The tables differ in how the weights are ranked before
pruning. "At random" is the mean over {len(reproduction.SEEDS)} draws."""
# For each data set: the folder, the files of the training images, the files of the test images, and
# the number of labels before the pixels of each record.
CIFAR = {
    "cifar10": (
        "cifar-10-batches-bin",
        [f"data_batch_{n}.bin" for n in range(1, 6)],
        ["test_batch.bin"],
        1,
    ),
    "cifar100": ("cifar-100-binary", ["train.bin"], ["test.bin"], 2),
}


def read_cifar(paths: list[Path], n_labels: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the images, of shape (n, 3, 32, 32), and the last label of each record.

    The last label of CIFAR-100 is the class; the label before it is a group of classes.
    """
    size = n_labels + 3 * 32 * 32
    parts = []
    for path in paths:
        values = np.fromfile(path, np.uint8)
        if not len(values) or len(values) % size:
            raise ValueError(f"{path} has {len(values)} bytes, expected records of {size}")
        parts.append(values.reshape(-1, size))
    records = np.concatenate(parts)
    return records[:, n_labels:].reshape(-1, 3, 32, 32), records[:, n_labels - 1]


def read_svhn(path: Path) -> np.ndarray:
    """Return the images of SVHN, of shape (n, 3, 32, 32)."""
    images = loadmat(path, variable_names=["X"]).get("X")
    if images is None or images.shape[:3] != (32, 32, 3) or images.dtype != np.uint8:
        raise ValueError(
            f"{path} is not SVHN's file of cropped digits: expected X, uint8, with shape "
            "(32, 32, 3, n)"
        )
    return images.transpose(3, 2, 0, 1)


class ImageArray:
    """Iterates over normalised batches of images, with their labels if there are any.

    Parameters
    ----------
    images : ndarray of shape (n, 3, height, width), uint8
        The images.
    labels : ndarray of shape (n,), or None
        The class of each image.
    batch_size : int
        The number of images per batch.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray | None, batch_size: int) -> None:
        self._images, self._labels, self._batch_size = images, labels, batch_size

    def __len__(self) -> int:
        return -(-len(self._images) // self._batch_size)

    def __iter__(self) -> Iterator[Any]:
        import torch

        mean, std = (np.array(values, np.float32)[:, None, None] for values in (MEAN, STD))
        for start in range(0, len(self._images), self._batch_size):
            batch = slice(start, start + self._batch_size)
            images = torch.from_numpy((self._images[batch].astype(np.float32) / 255 - mean) / std)
            if self._labels is None:
                yield images
            else:
                yield images, torch.from_numpy(self._labels[batch].astype(np.int64))


def sources(
    data: Path, dataset: str, ood: dict[str, Path], batch_size: int
) -> dict[str, Callable[[], Any]]:
    """Return, for the name of each feature file, a function that returns batches of images."""
    folder, train, test, n_labels = CIFAR[dataset]
    if not (data / folder).is_dir():
        raise FileNotFoundError(f"there is no {data / folder}; --help says where to get it")

    def cifar(names: list[str]) -> ImageArray:
        images, labels = read_cifar([data / folder / name for name in names], n_labels)
        return ImageArray(images, labels, batch_size)

    def batches(path: Path) -> Any:
        if path.suffix == ".mat":
            return ImageArray(read_svhn(path), None, batch_size)
        return ImageFolder(path, batch_size, resize=32, crop=32, mean=MEAN, std=STD)

    return {
        "id_train": lambda: cifar(train),
        "id_test": lambda: cifar(test),
        **{f"ood_{name}": lambda path=path: batches(path) for name, path in ood.items()},
    }


def main() -> None:
    root = os.environ.get("SKDICE_DATA")
    options = reproduction.parser(__doc__.splitlines()[0])
    options.add_argument("--dataset", choices=sorted(CIFAR), default="cifar10")
    default = Path(root) / "cifar10-densenet" if root else None
    arguments = reproduction.parse(options, default)
    if arguments.data is not None:
        from densenet import densenet_of

        reproduction.check_archives(arguments.data, MD5)
        ood = reproduction.places(arguments.data, PLACES, arguments.set)
        network = densenet_of(reproduction.load_state(arguments.checkpoint))
        given = sources(arguments.data, arguments.dataset, ood, arguments.batch_size)
        reproduction.extract(network, given, arguments.features, arguments.device)
    experiment = reproduction.Experiment(
        title=f"{arguments.dataset}, the authors' DenseNet-101",
        sets=SIZES,
        n_test=10_000,
        # The settings of the authors for the CIFAR networks.
        sparsity=0.9,
        sparsity_with_react=0.9,
        # The 90th percentile is the setting of the ReAct paper.
        clip=ReAct(quantile=0.9),
        note=NOTE,
    )
    features = reproduction.read(arguments.features, experiment)
    parts = [
        reproduction.heading(experiment.title, "="),
        reproduction.settings(features, experiment),
        reproduction.heading("Methods", "-"),
        reproduction.method_table(features, experiment),
        reproduction.heading("Which weights are kept", "-"),
        KEPT,
        reproduction.ablation_tables(features, experiment),
    ]
    reproduction.publish("\n\n".join(parts), arguments.output)


if __name__ == "__main__":
    main()
