"""Bottleneck ResNets (50, 101, 152 layers) with torchvision's state-dict keys.

He, Zhang, Ren & Sun, CVPR 2016, arXiv:1512.03385, with the stride in the 3 x 3 convolution, as
torchvision has it.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn


class Bottleneck(nn.Module):
    """Three convolutions beside a shortcut."""

    def __init__(self, n_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = None
        if stride != 1 or n_in != 4 * width:
            self.downsample = nn.Sequential(
                nn.Conv2d(n_in, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)
            )

    def forward(self, maps: Tensor) -> Tensor:
        shortcut = maps if self.downsample is None else self.downsample(maps)
        maps = self.bn1(self.conv1(maps)).relu()
        maps = self.bn2(self.conv2(maps)).relu()
        return (self.bn3(self.conv3(maps)) + shortcut).relu()


class ResNet(nn.Module):
    """From images (n, 3, height, width) to logits (n, n_classes)."""

    def __init__(
        self, n_classes: int = 1000, depths: Sequence[int] = (3, 4, 6, 3), width: int = 64
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        n_maps = width
        for place, depth in enumerate(depths):
            each, layers = width << place, []
            for n in range(depth):
                layers.append(Bottleneck(n_maps, each, 2 if place and not n else 1))
                n_maps = 4 * each
            self.add_module(f"layer{place + 1}", nn.Sequential(*layers))
        self.fc = nn.Linear(n_maps, n_classes)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.maxpool(self.bn1(self.conv1(images)).relu())
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            maps = layer(maps)
        return self.fc(maps.mean((2, 3)))


def resnet_of(state: Mapping[str, Tensor]) -> ResNet:
    """Return the network that a state dict is of, whatever its depths, width and classes."""
    depths = [
        sum(key.startswith(f"layer{n}.") and key.endswith(".conv1.weight") for key in state)
        for n in (1, 2, 3, 4)
    ]
    network = ResNet(len(state["fc.bias"]), depths, len(state["conv1.weight"]))
    network.load_state_dict(state)
    return network.eval()
