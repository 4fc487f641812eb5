"""DenseNet-BC for images of 32 x 32, with the state-dict keys of the DICE authors' CIFAR networks.

Huang, Liu, van der Maaten & Weinberger, CVPR 2017, arXiv:1608.06993: three blocks of bottleneck
layers, each adding `growth` maps to all before, with a halving of maps and of sides in between.
Depth 100 with growth 12 (the paper calls it DenseNet-101) has 16 layers per block and ends in 342
maps, which are averaged and enter ``fc``.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Layer(nn.Module):
    """A bottleneck layer: its input, and `growth` more maps."""

    def __init__(self, n_in: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(n_in)
        self.conv1 = nn.Conv2d(n_in, 4 * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        new = self.conv1(self.bn1(maps).relu())
        return torch.cat([maps, self.conv2(self.bn2(new).relu())], dim=1)


class Block(nn.Module):
    """Layers, one after the other."""

    def __init__(self, n_in: int, growth: int, n_layers: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(*(Layer(n_in + n * growth, growth) for n in range(n_layers)))

    def forward(self, maps: Tensor) -> Tensor:
        return self.layer(maps)


class Transition(nn.Module):
    """Half of the maps, at half the sides."""

    def __init__(self, n_in: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(n_in)
        self.conv1 = nn.Conv2d(n_in, n_in // 2, 1, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(self.conv1(self.bn1(maps).relu()), 2)


class DenseNet(nn.Module):
    """From images (n, 3, 32, 32) to logits (n, n_classes)."""

    def __init__(self, n_classes: int, growth: int = 12, n_layers: int = 16) -> None:
        super().__init__()
        n_maps = 2 * growth
        self.conv1 = nn.Conv2d(3, n_maps, 3, padding=1, bias=False)
        self.block1 = Block(n_maps, growth, n_layers)
        n_maps += n_layers * growth
        self.trans1 = Transition(n_maps)
        n_maps //= 2
        self.block2 = Block(n_maps, growth, n_layers)
        n_maps += n_layers * growth
        self.trans2 = Transition(n_maps)
        n_maps //= 2
        self.block3 = Block(n_maps, growth, n_layers)
        n_maps += n_layers * growth
        self.bn1 = nn.BatchNorm2d(n_maps)
        self.fc = nn.Linear(n_maps, n_classes)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.trans1(self.block1(self.conv1(images)))
        maps = self.block3(self.trans2(self.block2(maps)))
        return self.fc(self.bn1(maps).relu().mean((2, 3)))


def densenet_of(state: Mapping[str, Tensor]) -> DenseNet:
    """Return the network that a state dict is of, whatever its growth, depth and classes."""
    n_layers = sum(key.startswith("block1.") and key.endswith(".conv1.weight") for key in state)
    network = DenseNet(len(state["fc.bias"]), len(state["block1.layer.0.conv2.weight"]), n_layers)
    network.load_state_dict(state)
    return network.eval()
