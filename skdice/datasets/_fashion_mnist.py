"""The embedded data set: features of a Fashion-MNIST network and of real OOD images."""

from importlib import resources

import numpy as np
from sklearn.utils import Bunch

from skdice._head import LinearHead

_OOD_SETS = ("mnist", "digits", "textures")


def load_fashion_mnist_ood() -> Bunch:
    """Load penultimate features of a Fashion-MNIST network and of real OOD images.

    The network is a small ResNet with three stages of 32 to 128 channels, ReLU and global
    average pooling. The script ``benchmarks/embedded/train.py`` trained it to an accuracy of
    99.1 % on the training images and 93.7 % on the test images. We chose the network by its
    accuracy alone, before any detector had run on it. The rows are a random sample.

    Returns
    -------
    Bunch
        head : LinearHead, 10 classes x 128 features, float32
            The last linear layer.
        id_train : ndarray of shape (4000, 128), float16
            Features of Fashion-MNIST training images.
        id_train_labels : ndarray of shape (4000,), uint8
            The classes of the training images, 0 to 9.
        id_test : ndarray of shape (3000, 128), float16
            Features of Fashion-MNIST test images.
        id_test_labels : ndarray of shape (3000,), uint8
            The classes of the test images, 0 to 9.
        ood : dict of str to ndarray of shape (n, 128), float16
            Features of three OOD sets: ``"mnist"`` (1,500 handwritten digits), ``"digits"``
            (1,000 of the UCI digits, enlarged from 8 x 8 to 28 x 28 pixels) and
            ``"textures"`` (972 patches of 28 x 28 pixels from photographs of brick, grass
            and gravel).
        DESCR : str
            The origin and the licence of every part.

    Examples
    --------
    >>> from skdice.datasets import load_fashion_mnist_ood
    >>> data = load_fashion_mnist_ood()
    >>> data.head
    LinearHead(n_classes=10, n_features=128, dtype=float32)
    >>> {name: features.shape for name, features in data.ood.items()}
    {'mnist': (1500, 128), 'digits': (1000, 128), 'textures': (972, 128)}
    """
    folder = resources.files("skdice.datasets")
    with (folder / "fashion_mnist_ood.npz").open("rb") as file, np.load(file) as archive:
        arrays = dict(archive)
    return Bunch(
        head=LinearHead(arrays["weight"], arrays["bias"]),
        id_train=arrays["id_train"],
        id_train_labels=arrays["id_train_labels"],
        id_test=arrays["id_test"],
        id_test_labels=arrays["id_test_labels"],
        ood={name: arrays[name] for name in _OOD_SETS},
        DESCR=(folder / "fashion_mnist_ood.rst").read_text(encoding="utf-8"),
    )
