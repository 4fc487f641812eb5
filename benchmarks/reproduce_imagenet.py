"""Reproduce the paper's ImageNet table with a ResNet-50, from images or from features.

    python benchmarks/reproduce_imagenet.py --checkpoint resnet50-19c8e357.pth --data FOLDER \\
        --features FEATURES [--device cuda] [--output table.rst]
    python benchmarks/reproduce_imagenet.py --features FEATURES

The checkpoint is the one that the authors' code loads,
https://download.pytorch.org/models/resnet50-19c8e357.pth. These are torchvision's first weights of
ResNet-50, and not its ``DEFAULT`` weights. The folder --data holds:

===========  ======================  =========  =================================================
set          place                   images     from
===========  ======================  =========  =================================================
training     ILSVRC-2012/train/      1,281,167  https://www.image-net.org, a folder per class
validation   ILSVRC-2012/val/           50,000  there, sorted into a folder per class
inaturalist  iNaturalist/               10,000  http://pages.cs.wisc.edu/~huangrui/
                                                imagenet_ood_dataset/iNaturalist.tar.gz
sun          SUN/                       10,000  there, SUN.tar.gz
places       Places/                    10,000  there, Places.tar.gz
textures     dtd/images/                 5,640  dtd-r1.0.1.tar.gz of
                                                https://www.robots.ox.ac.uk/~vgg/data/dtd/
===========  ======================  =========  =================================================

Images are scaled to a short side of 256, cropped to the 224 x 224 pixels in their middle and
normalised, as in the evaluation of torchvision's classifiers. The features of the training set take
10.5 GB. An interrupted run can be started again, because existing feature files are kept. The
checkpoint may also be that of a smaller network of the same kind.
"""

from pathlib import Path

import reproduction

from skdice.extraction._images import ImageFolder
from skdice.shaping import ReAct

TRANSFORM = {
    "resize": 256,
    "crop": 224,
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}
MD5 = {"dtd-r1.0.1.tar.gz": "fff73e5086ae6bdbea199a49dfb8a4c1"}
PLACES = {
    "inaturalist": "iNaturalist",
    "sun": "SUN",
    "places": "Places",
    "textures": "dtd/images",
}
IN_DISTRIBUTION = {"id_train": "ILSVRC-2012/train", "id_test": "ILSVRC-2012/val"}


def _published(*rates: tuple[float, float]) -> dict[str, tuple[float, float]]:
    """Return published rates by OOD set, given in the order of the paper's columns."""
    return dict(zip([*PLACES, "mean"], rates, strict=True))


EXPERIMENT = reproduction.Experiment(
    title="ImageNet-1k, ResNet-50",
    sets={"inaturalist": 10_000, "sun": 10_000, "places": 10_000, "textures": 5_640},
    n_test=50_000,
    # The settings of the authors for ImageNet.
    sparsity=0.7,
    sparsity_with_react=0.1,
    clip=ReAct(threshold=1.0),
    # FPR95 and AUROC in percent, from Sun & Li, ECCV 2022, arXiv:2111.09805.
    published={
        "MSP": _published(
            (54.99, 87.74), (70.83, 80.86), (73.99, 79.76), (68.00, 79.61), (66.95, 81.99)
        ),
        "Energy": _published(
            (55.72, 89.95), (59.26, 85.89), (64.92, 82.86), (53.72, 85.99), (58.41, 86.17)
        ),
        "ReAct": _published(
            (20.38, 96.22), (24.20, 94.20), (33.85, 91.58), (47.30, 89.80), (31.43, 92.95)
        ),
        "DICE": _published(
            (25.63, 94.49), (35.15, 90.83), (46.49, 87.48), (31.72, 90.30), (34.75, 90.77)
        ),
        "DICE + ReAct": _published(
            (18.64, 96.24), (25.45, 93.94), (36.86, 90.67), (28.07, 92.74), (27.25, 93.40)
        ),
    },
    note="""The published figures are from Sun & Li, ECCV 2022, arXiv:2111.09805, which has no
    figures for MaxLogit.""",
)


def main() -> None:
    options = reproduction.parser(__doc__.splitlines()[0])
    arguments = reproduction.parse(options)
    if arguments.data is not None:
        from resnet import resnet_of

        def batches(path: Path) -> ImageFolder:
            return ImageFolder(path, arguments.batch_size, **TRANSFORM)

        reproduction.check_archives(arguments.data, MD5)
        ood = reproduction.places(arguments.data, PLACES, arguments.set)
        network = resnet_of(reproduction.load_state(arguments.checkpoint))
        sources = {name: arguments.data / place for name, place in IN_DISTRIBUTION.items()}
        sources |= {f"ood_{name}": path for name, path in ood.items()}
        given = {name: lambda path=path: batches(path) for name, path in sources.items()}
        reproduction.extract(network, given, arguments.features, arguments.device)
    features = reproduction.read(arguments.features, EXPERIMENT)
    parts = [
        reproduction.heading(EXPERIMENT.title, "="),
        reproduction.settings(features, EXPERIMENT),
        reproduction.method_table(features, EXPERIMENT),
    ]
    reproduction.publish("\n\n".join(parts), arguments.output)


if __name__ == "__main__":
    main()
