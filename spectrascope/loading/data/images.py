"""Images from files or memory as a fixed, ordered source of samples."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spectrascope.errors import DataError
from spectrascope.loading.data.sampling import Batch, choose_readable, shown
from spectrascope.loading.data.source import DataRequest
from spectrascope.loading.preprocessing import Preprocessing
from spectrascope.workload import SampleSource

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "DecodedImages",
    "Pictures",
    "StoredImages",
    "array_pictures",
    "file_pictures",
    "image_suffixes",
    "is_litter",
    "read_images",
    "to_pixels",
]

# Above this, images are decoded again at every pass rather than kept: peak memory must not grow with the
# batch.
KEEP_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Pictures:
    """``n`` images by number, wherever they are: what each is called in messages, and how it is opened."""

    n: int
    name: Callable[[int], str]
    open: Callable[[int], Image.Image]


def file_pictures(paths: Sequence[Path]) -> Pictures:
    """Images in files."""
    from PIL import Image

    return Pictures(len(paths), lambda i: str(paths[i]), lambda i: Image.open(paths[i]))


def array_pictures(pixels: NDArray[np.uint8], kind: str) -> Pictures:
    """Images of 8 bits held in memory, (n, h, w) or (n, h, w, channels); ``kind`` is what one is called."""
    from PIL import Image

    return Pictures(len(pixels), lambda i: f"{kind} {i}", lambda i: Image.fromarray(pixels[i]))


def normalise(pixels: Tensor, preprocessing: Preprocessing, scale: float = 255.0) -> Tensor:
    """Turn uint8 pixels (b, c, h, w) into the network's float32 input; ``scale`` is the value of white."""
    inputs = pixels.to(torch.float32).div_(scale)
    if preprocessing.mean:
        inputs.sub_(torch.tensor(preprocessing.mean).view(-1, 1, 1))
        inputs.div_(torch.tensor(preprocessing.std).view(-1, 1, 1))
    return inputs


@lru_cache(maxsize=1)
def image_suffixes() -> frozenset[str]:
    """File-name endings of the formats PIL can read, in lower case with the dot."""
    from PIL import Image

    Image.init()
    return frozenset(end for end, name in Image.registered_extensions().items() if name in Image.OPEN)


def is_litter(name: str) -> bool:
    """Whether a name is hidden, as notebooks' copies and macOS's own files are, or what macOS adds to an archive."""
    return name.startswith(".") or name == "__MACOSX"


def to_pixels(image: Image.Image, preprocessing: Preprocessing) -> Tensor:
    """Convert colours, resize and crop; returns uint8 (channels, h, w).

    Sizes round as torchvision's ``Resize`` and ``CenterCrop`` do, so that inputs equal those its weights were
    evaluated with.
    """
    from PIL import Image

    if image.mode.startswith("I"):  # 16-bit grey, which PIL's own conversion would clip at 255
        values = np.asarray(image).astype(np.float64)
        image = Image.fromarray(np.clip(values / 256 if values.max() > 255 else values, 0, 255).astype(np.uint8))
    mode = "L" if preprocessing.channels == 1 else "RGB"
    if image.mode != mode:
        image = image.convert(mode)
    method = Image.Resampling[preprocessing.interpolation.upper()]
    width, height = image.size
    if preprocessing.resize is not None and preprocessing.crop is not None:
        short, side, crop = min(width, height), preprocessing.resize, preprocessing.crop
        if short != side:
            size = (int(side * width / short), int(side * height / short))
            image = image.resize((side, size[1]) if width == short else (size[0], side), method)
        left, top = round((image.width - crop) / 2), round((image.height - crop) / 2)
        image = image.crop((left, top, left + crop, top + crop))
    elif preprocessing.size is not None and (height, width) != preprocessing.size:
        image = image.resize(preprocessing.size[::-1], method)
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8))
    return pixels.unsqueeze(0) if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()


def _decode(pictures: Pictures, index: int, preprocessing: Preprocessing) -> Tensor | None:
    """Decode one image, ``None`` where it cannot be."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL warns of odd metadata and of very large images
        try:
            with pictures.open(index) as image:
                return to_pixels(image, preprocessing)
        except Exception:  # decoders raise OSError, SyntaxError, ValueError, struct.error, … on corrupt files
            return None


class _Reader:
    """Decodes images as they are chosen, and keeps them while they are few."""

    def __init__(self, pictures: Pictures, preprocessing: Preprocessing, n: int) -> None:
        self._pictures, self._preprocessing, self._n = pictures, preprocessing, n
        self._shape: torch.Size | None = None
        self._buffer: Tensor | None = None
        self._rows: dict[int, int] = {}

    def read(self, indices: list[int]) -> list[int]:
        """Decode these images; returns those that cannot be."""
        failed = []
        for index in indices:
            pixels = _decode(self._pictures, index, self._preprocessing)
            if pixels is None:
                failed.append(index)
            else:
                self._keep(index, pixels)
        return failed

    def _keep(self, index: int, pixels: Tensor) -> None:
        if self._shape is None:
            self._shape = pixels.shape
            if math.prod(self._shape) * self._n <= KEEP_BYTES:
                self._buffer = torch.empty((self._n, *self._shape), dtype=torch.uint8)
        if pixels.shape != self._shape:
            sizes = " and ".join(f"{shape[-1]}×{shape[-2]}" for shape in (self._shape, pixels.shape))
            raise DataError(
                f"images differ in size ({sizes}, the latter {shown(self._pictures.name(index))}) and the network "
                f"does not say which size it takes; give --image-size"
            )
        if self._buffer is not None:
            row = self._rows[index] = len(self._rows)
            if row == len(self._buffer):  # a balanced choice may drop good images when bad ones leave a class
                self._buffer = torch.cat([self._buffer, torch.empty_like(self._buffer[: 1 + row // 8])])
            self._buffer[row] = pixels

    def kept(self, indices: list[int]) -> Tensor | None:
        """Pixels of these images in this order, ``None`` where they are too many to keep."""
        if self._buffer is None:
            return None
        rows = [self._rows[index] for index in indices]
        return self._buffer if rows == list(range(len(self._buffer))) else self._buffer[rows]


def read_images(request: DataRequest, pictures: Pictures, labels: NDArray[np.int64], what: str = "images") -> Batch:
    """Choose images and read every one of them once, so that a bad one is found before anything is measured.

    Args:
        request: how many, which seed, what to do about images that cannot be read.
        pictures: all images there are.
        labels: the network's output for each.
        what: what they are called in messages.

    Raises:
        DataError: images that cannot be read, or that differ in size where no size is asked for.
    """
    preprocessing = request.preprocessing
    if preprocessing.channels not in (1, 3):
        raise DataError(
            f"{request.network} takes {preprocessing.channels} channels, which image files do not have; pass "
            f"your own samples through the Python API"
        )
    reader = _Reader(pictures, preprocessing, min(request.num_samples, pictures.n))
    chosen = choose_readable(request, pictures.n, labels, reader.read, pictures.name, what)
    targets = torch.from_numpy(labels[np.array(chosen.indices)].astype(np.int64))
    pixels = reader.kept(chosen.indices)
    source: SampleSource
    if pixels is not None:
        source = StoredImages(pixels, targets, preprocessing)
    else:
        source = DecodedImages(pictures, tuple(chosen.indices), targets, preprocessing)
    return Batch(source, pictures.n, preprocessing.description, chosen.notes)


@dataclass(frozen=True)
class StoredImages(SampleSource):
    """Images kept as uint8 (n, channels, h, w), a byte a pixel, and normalised in ``fetch``."""

    pixels: Tensor
    targets: Tensor
    preprocessing: Preprocessing
    scale: float = 255.0

    @property
    def n(self) -> int:
        """Number of images."""
        return len(self.pixels)

    def fetch(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Normalise images ``start … stop−1``."""
        return normalise(self.pixels[start:stop], self.preprocessing, self.scale), self.targets[start:stop]


@dataclass(frozen=True)
class DecodedImages(SampleSource):
    """Images decoded anew at every ``fetch``, for batches too large to keep."""

    pictures: Pictures
    indices: tuple[int, ...]
    targets: Tensor
    preprocessing: Preprocessing

    @property
    def n(self) -> int:
        """Number of images."""
        return len(self.indices)

    def fetch(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Decode and normalise images ``start … stop−1``.

        Raises:
            DataError: one that could be read before no longer can.
        """
        pixels = []
        for index in self.indices[start:stop]:
            one = _decode(self.pictures, index, self.preprocessing)
            if one is None:
                raise DataError(
                    f"{shown(self.pictures.name(index))}: could be read at first, but not any more; expected files "
                    f"that stay as they are during a measurement"
                )
            pixels.append(one)
        return normalise(torch.stack(pixels), self.preprocessing), self.targets[start:stop]

    def fetch_targets(self, start: int, stop: int) -> Tensor:
        """Labels of images ``start … stop−1``, of which none is decoded."""
        return self.targets[start:stop]
