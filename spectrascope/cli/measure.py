"""What the measuring commands do alike: load a network and its data, then measure or look."""

from __future__ import annotations

import functools
import gc
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from spectrascope.bench_records import BenchReport
from spectrascope.cli.groups import Target
from spectrascope.cli.progress import OnProgress, follow_progress
from spectrascope.decomposition import DecomposeOptions
from spectrascope.errors import DataError, LoadError, OptionError, QuantizedError
from spectrascope.records import DataInfo, LossName, Missing, ModelInfo, ProbeOptions, Report

if TYPE_CHECKING:
    from torch import Tensor

    from spectrascope.inspection import Inspection
    from spectrascope.loading.loaded import LoadedModel
    from spectrascope.loading.sampling import LoadedData
    from spectrascope.suggestion import Advice, ValidateOn
    from spectrascope.workload import LossFunction, SampleSource, Workload

__all__ = ["look_at", "measure", "measure_bench", "measure_validated", "read_tensors", "spell_command"]


def spell_command(arguments: Sequence[str]) -> str:
    """Return the command as it can be pasted into a shell again."""
    return shlex.join(["spectrascope", *arguments])


def measure(
    target: Target, options: ProbeOptions, *, command: str, quiet: bool, decompose: DecomposeOptions | None = None
) -> Report:
    """Load and measure; with ``decompose``, the spectral alignment decomposition too.

    Raises:
        SpectrascopeError: something cannot be loaded or measured.
    """
    _require_window(options)
    with follow_progress(quiet=quiet) as on_progress:
        on_progress("import", 0, 1)
        started = time.perf_counter()
        run: Callable[..., Report]
        if decompose is None:
            from spectrascope.pipeline import run_probe as run
        else:
            from spectrascope.decomposer import run_decompose

            run = functools.partial(run_decompose, decompose=decompose)
        imported = time.perf_counter()
        on_progress("import", 1, 1)
        subject = _load(target, options, on_progress)
        seconds = {"import": imported - started, "load": time.perf_counter() - imported}
        return run(
            subject.loaded.model,
            subject.source,
            subject.loss_fn,
            options=options,
            model_info=subject.loaded.info,
            data_info=subject.data_info,
            command=command,
            seconds=seconds,
            notes=subject.notes,
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
        subject = _load(target, options, on_progress)
        return run_bench(
            subject.loaded.model,
            subject.source,
            subject.loss_fn,
            options=options,
            model_info=subject.loaded.info,
            data_info=subject.data_info,
            command=command,
            rounds=rounds,
            on_progress=on_progress,
        )


def measure_validated(
    target: Target, options: ProbeOptions, *, train_batch: int | None, on: ValidateOn, command: str, quiet: bool
) -> Advice:
    """Load, measure on half of the samples, advise, and take the steps for real.

    Raises:
        SpectrascopeError: something cannot be loaded or measured.
    """
    _require_window(options)
    with follow_progress(quiet=quiet) as on_progress:
        on_progress("import", 0, 1)
        from spectrascope.validation import advise_and_validate

        on_progress("import", 1, 1)
        subject = _load(target, options, on_progress)
        return advise_and_validate(
            subject.loaded.model,
            subject.source,
            subject.loss_fn,
            options=options,
            model_info=subject.loaded.info,
            data_info=subject.data_info,
            train_batch=train_batch,
            on=on,
            command=command,
            notes=subject.notes,
            on_progress=on_progress,
        )


def look_at(target: Target, options: ProbeOptions, *, command: str, quiet: bool) -> Inspection:
    """Read names and shapes, and say what would be measured.

    Raises:
        SpectrascopeError: something cannot be read.
    """
    with follow_progress(quiet=quiet) as on_progress, _rare_collections():
        on_progress("import", 0, 1)
        from spectrascope.inspector import inspect_headers, inspect_model

        on_progress("import", 1, 1)
        on_progress("load", 0, 1)
        try:
            loaded = _load_model(target, options, headers_only=True)
        except QuantizedError:  # known well enough: none of its weights would be measured
            raise
        except LoadError as error:
            tensors = read_tensors(target, headers_only=True)
            if tensors is None:
                raise
            content, info = tensors
            why = f"the network is not known: {error}"
            found = inspect_headers(content, why, options=options, model_info=info, command=command)
        else:
            source, loss_fn, notes = _shapes(target, options, loaded)
            found = inspect_model(
                loaded.model,
                source,
                loss_fn,
                options=options,
                model_info=loaded.info,
                command=command,
                notes=loaded.notes + notes,
            )
        on_progress("load", 1, 1)
        return found


@dataclass(frozen=True)
class _Subject:
    """A network with its samples and loss."""

    loaded: LoadedModel
    source: SampleSource
    data_info: DataInfo
    loss_fn: LossFunction
    notes: tuple[str, ...]


def _load(target: Target, options: ProbeOptions, on_progress: OnProgress) -> _Subject:
    on_progress("load", 0, 2)
    loaded = _load_model(target, options, headers_only=False)
    on_progress("load", 1, 2)
    subject = _subject(target, options, loaded)
    on_progress("load", 2, 2)
    return subject


def _load_model(target: Target, options: ProbeOptions, *, headers_only: bool) -> LoadedModel:
    from spectrascope.loading.target import load_model

    return load_model(
        target.model,
        arch=target.arch,
        base=target.base,
        num_classes=target.num_classes,
        seed=options.seed,
        trust_remote_code=target.trust_remote_code,
        headers_only=headers_only,
    )


def _subject(target: Target, options: ProbeOptions, loaded: LoadedModel) -> _Subject:
    if loaded.workload is not None and target.dataset is None:
        return _own_subject(target, options, loaded, loaded.workload)
    loss_fn = _loss_of(target, loaded)
    data = _load_data(target, options, loaded)
    return _Subject(loaded, data.source, data.info, loss_fn, loaded.notes + data.notes)


def _loss_of(target: Target, loaded: LoadedModel) -> LossFunction:
    from spectrascope.losses import make_loss

    return make_loss(target.loss, task=loaded.info.task, label_smoothing=target.label_smoothing)


def _load_data(target: Target, options: ProbeOptions, loaded: LoadedModel) -> LoadedData:
    from spectrascope.loading.datasets import load_dataset

    return load_dataset(
        target.dataset,
        loaded,
        num_samples=options.num_samples,
        seed=options.seed,
        data_root=target.data_root,
        download=target.download,
        image_size=target.image_size,
        block_size=target.block_size,
        balanced=target.balanced,
        skip_bad=target.skip_bad,
        loss=target.loss,
    )


def _shapes(
    target: Target, options: ProbeOptions, loaded: LoadedModel
) -> tuple[SampleSource | Missing, LossFunction, tuple[str, ...]]:
    """A few samples of the right shape: noise wherever the network says what it reads, else the dataset's own.

    A file of arrays may hold anything, so its own first samples are taken.
    """
    if loaded.workload is not None and target.dataset is None:
        own = _own_subject(target, options, loaded, loaded.workload)
        return own.source, own.loss_fn, ()
    loss_fn = _loss_of(target, loaded)
    few = replace(options, num_samples=3)
    try:
        named = (target.dataset or "").startswith(("npz:", "pt:"))
        data = _load_data(target if named else replace(target, dataset="synthetic", balanced=False), few, loaded)
    except DataError as error:
        if named:
            raise
        if target.dataset in (None, "synthetic"):
            return Missing(str(error)), loss_fn, ()
        data = _load_data(replace(target, balanced=False), few, loaded)
    return data.source, loss_fn, () if data.info.synthetic else data.notes


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Look for garbage rarely: while packages are imported there is none, and looking takes a tenth of the time."""
    before = gc.get_threshold()
    gc.set_threshold(100_000, 50, 50)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _own_subject(target: Target, options: ProbeOptions, loaded: LoadedModel, own: Workload) -> _Subject:
    from spectrascope.api import describe_source
    from spectrascope.measure.selfcheck import FirstSamples

    if target.loss is not LossName.AUTO or target.label_smoothing:
        raise OptionError("--loss goes with --dataset: the factory brings a loss of its own")
    source = own.source if own.source.n <= options.num_samples else FirstSamples(own.source, options.num_samples)
    return _Subject(loaded, source, describe_source(source), own.loss_fn, loaded.notes)


def read_tensors(target: Target, *, headers_only: bool) -> tuple[dict[str, Tensor], ModelInfo] | None:
    """A checkpoint without its network, ``None`` where the model string names none or something else is wrong."""
    from pathlib import Path

    from spectrascope.loading.checkpoint import read_checkpoint

    if target.model is None or target.arch is not None or not Path(target.model.partition("::")[0]).exists():
        return None
    try:
        checkpoint = read_checkpoint(target.model, headers_only=headers_only)
    except LoadError:
        return None
    tensors = dict(checkpoint.state_dict)
    info = ModelInfo(
        id=Path(target.model).name,
        architecture="unknown",
        source="checkpoint",
        path=str(checkpoint.path),
        sha256=checkpoint.sha256,
        weights="checkpoint",
        n_parameters=sum(tensor.numel() for tensor in tensors.values() if tensor.is_floating_point()),
    )
    return tensors, info


def _require_window(options: ProbeOptions) -> None:
    if options.min_rank > options.top_k:
        raise OptionError(f"--min-rank {options.min_rank} is beyond --top-k {options.top_k}")
