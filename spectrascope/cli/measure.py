"""What ``probe``, ``triangle`` and ``bench`` do alike: load a network and its data, then measure."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from spectrascope.cli.progress import OnProgress, follow_progress
from spectrascope.errors import OptionError
from spectrascope.records import BenchReport, ProbeOptions, Report

if TYPE_CHECKING:
    from spectrascope.loading.datasets import LoadedData
    from spectrascope.loading.loaded import LoadedModel

__all__ = ["Target", "measure", "measure_bench", "spell_command"]


@dataclass(frozen=True, slots=True)
class Target:
    """What to measure, as named on the command line."""

    model: str | None
    arch: str | None
    num_classes: int | None
    dataset: str | None
    data_root: Path | None
    download: bool
    image_size: int | None


def spell_command(arguments: Sequence[str]) -> str:
    """Return the command as it can be pasted into a shell again."""
    return shlex.join(["spectrascope", *arguments])


def measure(target: Target, options: ProbeOptions, *, command: str, quiet: bool) -> Report:
    """Load and measure.

    Raises:
        SpectrascopeError: something cannot be loaded or measured.
    """
    _require_window(options)
    with follow_progress(quiet=quiet) as on_progress:
        on_progress("import", 0, 1)
        started = time.perf_counter()
        from spectrascope.pipeline import run_probe

        imported = time.perf_counter()
        on_progress("import", 1, 1)
        loaded, data = _load(target, options, on_progress)
        seconds = {"import": imported - started, "load": time.perf_counter() - imported}
        return run_probe(
            loaded.model,
            data.source,
            options=options,
            model_info=loaded.info,
            data_info=data.info,
            command=command,
            seconds=seconds,
            on_progress=on_progress,
        )


def measure_bench(target: Target, options: ProbeOptions, *, rounds: int, command: str, quiet: bool) -> BenchReport:
    """Load and time against double backprop.

    Raises:
        SpectrascopeError: something cannot be loaded or measured.
    """
    _require_window(options)
    with follow_progress(quiet=quiet) as on_progress:
        on_progress("import", 0, 1)
        from spectrascope.bench import run_bench

        on_progress("import", 1, 1)
        loaded, data = _load(target, options, on_progress)
        return run_bench(
            loaded.model,
            data.source,
            options=options,
            model_info=loaded.info,
            data_info=data.info,
            command=command,
            rounds=rounds,
            on_progress=on_progress,
        )


def _load(target: Target, options: ProbeOptions, on_progress: OnProgress) -> tuple[LoadedModel, LoadedData]:
    from spectrascope.loading.datasets import load_dataset
    from spectrascope.loading.target import load_model

    on_progress("load", 0, 2)
    loaded = load_model(target.model, arch=target.arch, num_classes=target.num_classes, seed=options.seed)
    on_progress("load", 1, 2)
    data = load_dataset(
        target.dataset,
        loaded,
        num_samples=options.num_samples,
        seed=options.seed,
        data_root=target.data_root,
        download=target.download,
        image_size=target.image_size,
    )
    on_progress("load", 2, 2)
    return loaded, data


def _require_window(options: ProbeOptions) -> None:
    if options.min_rank > options.top_k:
        raise OptionError(f"--min-rank {options.min_rank} is beyond --top-k {options.top_k}")
