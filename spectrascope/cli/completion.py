"""What a shell offers for MODEL and DATA where the user presses Tab."""

from __future__ import annotations

from glob import escape, glob
from pathlib import Path

from spectrascope.loading.absent import DATASETS, SUFFIXES, model_names

__all__ = ["complete_data", "complete_model"]


def complete_model(incomplete: str) -> list[str]:
    """Names of networks, checkpoints and folders that begin so."""
    names = [*model_names(), "digits-cnn@early", "digits-cnn@final"]
    return [name for name in names if name.startswith(incomplete)] + _paths(incomplete, (*SUFFIXES, ".json", ".py"))


def complete_data(incomplete: str) -> list[str]:
    """Datasets that begin so; behind ``folder:`` and the like the paths."""
    kind, colon, path = incomplete.partition(":")
    if colon and f"{kind}:" in DATASETS:
        return [f"{kind}:{found}" for found in _paths(path)]
    return [name for name in DATASETS if name.startswith(incomplete)]


def _paths(incomplete: str, suffixes: tuple[str, ...] = ("",)) -> list[str]:
    found = sorted(glob(f"{escape(incomplete)}*"))
    return [f"{name}/" if Path(name).is_dir() else name for name in found if _fits(Path(name), suffixes)]


def _fits(path: Path, suffixes: tuple[str, ...]) -> bool:
    return path.is_dir() or path.name.endswith(suffixes)
