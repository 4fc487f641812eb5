"""Batches of images from a folder, prepared in the way that image classifiers are evaluated."""

import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skdice._compat.extras import import_extra

SUFFIXES = {".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
READING_THREADS = 4


def image_files(folder: Path) -> list[Path]:
    """Return the images below a folder in sorted order, without hidden files and folders."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )


class ImageFolder:
    """Batches of the images in a folder, in the sorted order of their names.

    If all images lie in folders one level down, these folders are the classes, and batches come
    with labels. A label is the place of its class among the sorted names.

    Each image is scaled so that its shorter side is `resize` pixels, with antialiased bilinear
    interpolation, cropped to the `crop` pixels in its middle, and normalised by the `mean` and the
    `std` of its channels, of values in [0, 1]: three for colour images, one for grey images.
    """

    def __init__(
        self,
        folder: Path,
        batch_size: int,
        *,
        resize: int,
        crop: int,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        if len(mean) != len(std) or len(mean) not in (1, 3):
            raise ValueError(
                f"mean has {len(mean)} and std {len(std)} values, expected one each for grey, or "
                "three each for colour"
            )
        if not (np.array(std) > 0).all() or not np.isfinite([*mean, *std]).all():
            raise ValueError(
                f"mean is {list(mean)} and std {list(std)}: expected numbers, and std above 0"
            )
        if crop < 1:
            raise ValueError(f"crop is {crop}, expected at least 1 pixel")
        if resize < crop:
            raise ValueError(f"resize is {resize}, expected at least the {crop} pixels of the crop")
        self._image = import_extra("PIL.Image", "torch")
        self._batch_size, self._resize, self._crop = batch_size, resize, crop
        self._mean, self._std = np.array(mean, np.float32), np.array(std, np.float32)
        self.files = image_files(folder)
        if not self.files:
            raise ValueError(f"{folder} does not hold an image ({', '.join(sorted(SUFFIXES))})")
        depths = {len(path.relative_to(folder).parts) for path in self.files}
        self.classes = None
        if depths == {2}:
            # A folder without images counts as a class, so that the others keep their places.
            self.classes = sorted(
                path.name
                for path in folder.iterdir()
                if path.is_dir() and not path.name.startswith(".")
            )
        elif 2 in depths:
            warnings.warn(
                f"the images in {folder} do not all lie one folder down: no labels are kept",
                UserWarning,
                stacklevel=2,
            )

    def __len__(self) -> int:
        return -(-len(self.files) // self._batch_size)

    def __iter__(self) -> Iterator[Any]:
        torch = import_extra("torch", "torch")
        with ThreadPoolExecutor(READING_THREADS, "skdice-images") as pool:
            for start in range(0, len(self.files), self._batch_size):
                files = self.files[start : start + self._batch_size]
                images = torch.from_numpy(np.stack(list(pool.map(self._load, files))))
                if self.classes is None:
                    yield images
                else:
                    places = [self.classes.index(path.parent.name) for path in files]
                    yield images, torch.tensor(places)

    def _load(self, path: Path) -> NDArray[np.float32]:
        """Return an image as (channels, crop, crop)."""
        try:
            with self._image.open(path) as opened:
                if opened.mode.startswith(("I", "F")):
                    raise ValueError(
                        f"its mode {opened.mode} has more than 8 bits per channel; convert it"
                    )
                image = opened.convert("RGB" if len(self._mean) == 3 else "L")
        except (OSError, ValueError, SyntaxError, self._image.DecompressionBombError) as error:
            raise ValueError(f"cannot read the image {path}: {error}") from error
        width, height = image.size
        # The longer side is rounded down, as torchvision does.
        size = (
            (self._resize, int(self._resize * height / width))
            if width <= height
            else (int(self._resize * width / height), self._resize)
        )
        image = image.resize(size, self._image.Resampling.BILINEAR)
        left, top = (round((length - self._crop) / 2) for length in size)
        image = image.crop((left, top, left + self._crop, top + self._crop))
        pixels = np.asarray(image, np.float32).reshape(self._crop, self._crop, -1) / 255
        return np.ascontiguousarray(((pixels - self._mean) / self._std).transpose(2, 0, 1))
