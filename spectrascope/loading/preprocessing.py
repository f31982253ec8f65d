"""How an image file becomes a network's input."""

from __future__ import annotations

from dataclasses import dataclass, replace

from spectrascope.errors import OptionError

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "TOKENS", "AskedPreprocessing", "Preprocessing"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """Resize, crop, scale to [0, 1], normalise per channel.

    With ``resize`` and ``crop`` the shorter side becomes ``resize`` pixels and the centre ``crop × crop`` is
    kept; otherwise an image that is not of ``size`` (height, width) is stretched to it; ``size`` ``None``
    keeps images as they are. Empty ``mean`` and ``std`` mean no normalisation. ``channels`` is 1 or 3 (other
    values cannot be filled from image files).
    """

    size: tuple[int, int] | None
    channels: int = 3
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    resize: int | None = None
    crop: int | None = None
    interpolation: str = "bilinear"
    note: str = ""

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or len(self.mean) not in (0, self.channels):
            raise ValueError("mean and std have one value per channel, or none")

    @property
    def input_shape(self) -> tuple[int, int, int] | None:
        """(channels, height, width) of one input, where it is known."""
        if self.crop is not None:
            return self.channels, self.crop, self.crop
        return None if self.size is None else (self.channels, *self.size)

    @property
    def description(self) -> str:
        """One line for the report."""
        if self.resize is not None and self.crop is not None:
            steps = [f"shorter side to {self.resize} ({self.interpolation}), centre crop {self.crop}×{self.crop}"]
        elif self.size is not None:
            steps = [f"{self.size[0]}×{self.size[1]} pixels ({self.interpolation} where resized)"]
        else:
            steps = ["images at their own size"]
        steps.append({1: "grey", 3: "RGB"}.get(self.channels, f"{self.channels} channels"))
        if self.mean:
            values = ", ".join(
                f"{name} " + " ".join(f"{v:g}" for v in vs) for name, vs in (("mean", self.mean), ("std", self.std))
            )
            steps.append(f"scaled to [0, 1], normalised with {values}")
        else:
            steps.append("scaled to [0, 1], not normalised")
        if self.note:
            steps.append(self.note)
        return "; ".join(steps)

    def with_image_size(self, side: int) -> Preprocessing:
        """Square inputs of ``side`` pixels instead; a resize before a crop keeps its proportion to it."""
        if self.resize is not None and self.crop is not None:
            return replace(self, resize=round(self.resize * side / self.crop), crop=side)
        return replace(self, size=(side, side))


@dataclass(frozen=True, slots=True)
class AskedPreprocessing:
    """What is asked of images in place of what the network says: ``--image-size``, ``--resize``, ``--mean``, ``--std``.

    ``mean`` and ``std`` hold one value for all channels or one for each, of pixels scaled to [0, 1].

    Raises:
        OptionError: values that no image could have, or one of ``mean`` and ``std`` alone.
    """

    image_size: int | None = None
    resize: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for name, value in (("--image-size", self.image_size), ("--resize", self.resize)):
            if value is not None and value < 1:
                raise OptionError(f"{name} {value}: expected at least 1 pixel")
        if (self.mean is None) != (self.std is None):
            given, other = ("--mean", "--std") if self.std is None else ("--std", "--mean")
            raise OptionError(f"{given} goes with {other}: pixels are shifted by the one and divided by the other")
        if self.mean is None or self.std is None:
            return
        if not all(0 <= value <= 1 for value in self.mean) or not all(0 < value <= 2 for value in self.std):
            raise OptionError(
                f"--mean {_spelt(self.mean)} --std {_spelt(self.std)}: expected means within [0, 1] and stds above 0, "
                "of pixels scaled to [0, 1]; divide values of pixels up to 255 by 255"
            )

    @property
    def given(self) -> tuple[str, ...]:
        """The options that were given."""
        named = (("--image-size", self.image_size), ("--resize", self.resize), ("--mean", self.mean))
        return tuple(name for name, value in named if value is not None)

    def applied_to(self, preprocessing: Preprocessing, network: str) -> Preprocessing:
        """What is done to images.

        Raises:
            OptionError: it does not fit the network's channels, or a size is missing.
        """
        if self.image_size is not None:
            preprocessing = preprocessing.with_image_size(self.image_size)
        if self.resize is not None:
            shape = preprocessing.input_shape
            if shape is None or shape[1] != shape[2]:
                raise OptionError(
                    "--resize goes with --image-size: the shorter side becomes the one, the centre the other"
                )
            if self.resize < shape[1]:
                raise OptionError(
                    f"--resize {self.resize}: expected at least the image size, {shape[1]}, which is cut out"
                )
            preprocessing = replace(preprocessing, size=None, resize=self.resize, crop=shape[1])
        if self.mean is not None and self.std is not None:
            channels = preprocessing.channels
            for name, values in (("--mean", self.mean), ("--std", self.std)):
                if len(values) not in (1, channels):
                    raise OptionError(
                        f"{name} {_spelt(values)}: {network} takes {channels} channels; expected {channels} values, or "
                        "one for all"
                    )
            mean, std = (values * (channels // len(values)) for values in (self.mean, self.std))
            preprocessing = replace(preprocessing, mean=mean, std=std, note="")
        return preprocessing


def _spelt(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:g}" for value in values)


TOKENS = Preprocessing(size=None, note="the network reads tokens, not images")
"""Of a language model."""
