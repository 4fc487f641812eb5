"""Data sets of real features that the package contains."""

from skdice.datasets._fashion_mnist import load_fashion_mnist_ood

__all__ = ["load_fashion_mnist_ood"]
