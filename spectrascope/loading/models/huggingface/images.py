"""What a Hugging Face folder says about the images its network takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spectrascope.errors import LoadError
from spectrascope.loading.models.huggingface.config import read_json
from spectrascope.loading.preprocessing import Preprocessing

__all__ = ["image_preprocessing"]

_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}


def image_preprocessing(folder: Path, config: Any) -> Preprocessing:
    """Evaluation preprocessing from preprocessor_config.json, else the image size the config states."""
    channels = getattr(config, "num_channels", None)
    channels = channels if isinstance(channels, int) and channels > 0 else 3
    fallback = _pair(getattr(config, "image_size", None))
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return Preprocessing(size=fallback, channels=channels, note="no preprocessor_config.json: not normalised")
    try:
        steps = read_json(path)
        return _from_steps(steps, channels, fallback)
    except LoadError:
        raise
    except (TypeError, ValueError, KeyError, ZeroDivisionError, OverflowError):
        raise LoadError(
            f"{path} does not say how images are prepared in a way that is understood; expected size, image_mean, "
            f"image_std, or remove the file to use the config's image size"
        ) from None


def _from_steps(steps: dict[str, Any], channels: int, fallback: tuple[int, int] | None) -> Preprocessing:
    mean, std = _normalisation(steps, channels)
    interpolation = _RESAMPLE.get(steps.get("resample", 2), "bilinear")
    size, crop = steps.get("size"), _pair(steps.get("crop_size"))
    crop = crop if steps.get("do_center_crop", crop is not None) else None
    common: dict[str, Any] = {"channels": channels, "mean": mean, "std": std, "interpolation": interpolation}
    if not steps.get("do_resize", True):
        if crop is not None and crop[0] == crop[1]:
            return Preprocessing(size=None, resize=crop[0], crop=crop[0], note="crops without resizing", **common)
        return Preprocessing(size=fallback, **common)
    shortest = size.get("shortest_edge") if isinstance(size, dict) else None
    if steps.get("crop_pct") is not None:  # a square of `size`, cut from one larger by the fraction
        side = int(shortest or (_pair(size) or (0, 0))[0])
        if side >= 384:
            return Preprocessing(size=(side, side), **common)
        return Preprocessing(size=None, resize=int(side / float(steps["crop_pct"])), crop=side, **common)
    whole = _pair(size)
    shorter = int(shortest) if shortest is not None else (0 if whole is None else min(whole))
    if crop is not None and shorter:
        note = "" if crop[0] == crop[1] else f"crop taken as square, the config says {crop[0]}×{crop[1]}"
        return Preprocessing(size=None, resize=shorter, crop=min(crop), note=note, **common)
    if whole is not None:
        return Preprocessing(size=whole, **common)
    if shorter:
        # The processor would keep the longer side; one batch needs one shape.
        note = "cropped to a square, the processor keeps the longer side"
        return Preprocessing(size=None, resize=shorter, crop=shorter, note=note, **common)
    return Preprocessing(size=fallback, note="the preprocessor states no size", **common)


def _normalisation(steps: dict[str, Any], channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation for pixels in [0, 1], whatever range the processor scales them to."""
    factor = 255.0 * float(steps.get("rescale_factor", 1 / 255)) if steps.get("do_rescale", True) else 255.0
    mean, std = [0.0] * channels, [1.0] * channels
    if steps.get("do_normalize", "image_mean" in steps) and steps.get("image_mean") is not None:
        mean, std = _per_channel(steps["image_mean"], channels), _per_channel(steps["image_std"], channels)
    if not any(mean) and all(abs(s / factor - 1) < 1e-6 for s in std):
        return (), ()
    return tuple(round(m / factor, 9) for m in mean), tuple(round(s / factor, 9) for s in std)


def _per_channel(values: Any, channels: int) -> list[float]:
    values = values if isinstance(values, list) else [values]
    values = values * channels if len(values) == 1 else values
    if len(values) != channels:
        raise ValueError("one value per channel")
    return [float(value) for value in values]


def _pair(size: Any) -> tuple[int, int] | None:
    """(height, width) of a size written as a number, two numbers or a dict; ``None`` where it is none of these."""
    if isinstance(size, dict):
        size = (size.get("height"), size.get("width"))
    elif isinstance(size, int) and not isinstance(size, bool):
        size = (size, size)
    if isinstance(size, (list, tuple)) and len(size) == 2 and all(isinstance(v, int) and v > 0 for v in size):
        return int(size[0]), int(size[1])
    return None
