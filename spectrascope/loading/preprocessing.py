"""How an image file becomes a network's input."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "TOKENS", "Preprocessing"]

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


TOKENS = Preprocessing(size=None, note="the network reads tokens, not images")
"""Of a language model."""
