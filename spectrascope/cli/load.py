"""From what the command line names to a network with its samples and loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from spectrascope.cli.groups import Request
from spectrascope.cli.progress import OnProgress
from spectrascope.errors import LoadError, OptionError
from spectrascope.records.report import DataInfo, ModelInfo, ProbeOptions
from spectrascope.records.values import LossName

if TYPE_CHECKING:
    from torch import Tensor

    from spectrascope.loading.data.source import LoadedData
    from spectrascope.loading.loaded import LoadedModel
    from spectrascope.workload import LossFunction, SampleSource, Workload

__all__ = ["Subject", "load_data", "load_model", "load_subject", "loss_of", "own_subject", "read_tensors"]


@dataclass(frozen=True)
class Subject:
    """A network with its samples and loss."""

    loaded: LoadedModel
    source: SampleSource
    data_info: DataInfo
    loss_fn: LossFunction
    notes: tuple[str, ...]


def load_subject(target: Request, options: ProbeOptions, on_progress: OnProgress) -> Subject:
    """Load the network named, then its data."""
    on_progress("load", 0, 2)
    loaded = load_model(target, options, headers_only=False)
    on_progress("load", 1, 2)
    subject = _subject(target, options, loaded)
    on_progress("load", 2, 2)
    return subject


def load_model(target: Request, options: ProbeOptions, *, headers_only: bool) -> LoadedModel:
    """Load the network named; with ``headers_only`` its names and shapes alone, where the format allows."""
    from spectrascope.loading.models.open import load_model

    return load_model(
        target.model,
        arch=target.arch,
        base=target.base,
        num_classes=target.num_classes,
        seed=options.seed,
        trust_remote_code=target.trust_remote_code,
        headers_only=headers_only,
    )


def _subject(target: Request, options: ProbeOptions, loaded: LoadedModel) -> Subject:
    if loaded.workload is not None and target.dataset is None:
        return own_subject(target, options, loaded, loaded.workload)
    loss_fn = loss_of(target, loaded)
    data = load_data(target, options, loaded)
    return Subject(loaded, data.source, data.info, loss_fn, loaded.notes + data.notes)


def loss_of(target: Request, loaded: LoadedModel) -> LossFunction:
    """Return the loss asked for, or the one of the network's task."""
    from spectrascope.losses import make_loss

    return make_loss(target.loss, task=loaded.info.task, label_smoothing=target.label_smoothing)


def load_data(target: Request, options: ProbeOptions, loaded: LoadedModel) -> LoadedData:
    """Load the samples asked for, as the network reads them."""
    from spectrascope.loading.data.open import load_dataset

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


def own_subject(target: Request, options: ProbeOptions, loaded: LoadedModel, own: Workload) -> Subject:
    """Take the loss and the samples that the user's own factory brought.

    Raises:
        OptionError: a loss was asked for as well.
    """
    from spectrascope.api import describe_source
    from spectrascope.workload import FirstSamples

    if target.loss is not LossName.AUTO or target.label_smoothing:
        raise OptionError("--loss goes with --dataset: the factory brings a loss of its own")
    source = own.source if own.source.n <= options.num_samples else FirstSamples(own.source, options.num_samples)
    return Subject(loaded, source, describe_source(source), own.loss_fn, loaded.notes)


def read_tensors(target: Request, *, headers_only: bool) -> tuple[dict[str, Tensor], ModelInfo] | None:
    """A checkpoint without its network, ``None`` where the model string names none or something else is wrong."""
    from pathlib import Path

    from spectrascope.loading.checkpoints.read import read_checkpoint

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
