"""Images from files or memory as a fixed, ordered source of samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from spectrascope.errors import DataError
from spectrascope.loading.preprocessing import Preprocessing
from spectrascope.workload import SampleSource

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["FileImages", "StoredImages", "decode_files", "image_suffixes", "to_pixels"]


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


def decode_files(paths: Sequence[Path], preprocessing: Preprocessing) -> Tensor:
    """Read images into one uint8 tensor (n, channels, h, w).

    Raises:
        DataError: some files cannot be read as images (the first few are named), or they differ in size and
            no size is asked for.
    """
    from PIL import Image

    pixels: Tensor | None = None
    failed: list[Path] = []
    for i, path in enumerate(paths):
        try:
            with Image.open(path) as image:
                one = to_pixels(image, preprocessing)
        except Exception:  # decoders raise OSError, SyntaxError, ValueError, struct.error, … on corrupt files
            failed.append(path)
            continue
        if pixels is None:
            pixels = torch.empty((len(paths), *one.shape), dtype=torch.uint8)
        if one.shape != pixels.shape[1:]:
            sizes = " and ".join(f"{t.shape[-1]}×{t.shape[-2]}" for t in (pixels, one))
            raise DataError(
                f"images differ in size ({sizes}, the latter {path}) and the network does not say which "
                f"size it takes; give --image-size"
            )
        pixels[i] = one
    if failed or pixels is None:
        names = ", ".join(str(path) for path in failed[:3]) + (", …" if len(failed) > 3 else "")
        raise DataError(
            f"{len(failed)} of {len(paths)} image files cannot be read: {names}; expected intact images, "
            f"remove or replace these"
        )
    return pixels


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
class FileImages(SampleSource):
    """Images decoded from their files at every ``fetch``, for batches too large to keep."""

    paths: tuple[Path, ...]
    targets: Tensor
    preprocessing: Preprocessing

    @property
    def n(self) -> int:
        """Number of images."""
        return len(self.paths)

    def fetch(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Decode and normalise images ``start … stop−1``.

        Raises:
            DataError: a file among them cannot be read.
        """
        pixels = decode_files(self.paths[start:stop], self.preprocessing)
        return normalise(pixels, self.preprocessing), self.targets[start:stop]
