"""Load what the command line names: a network, its samples and its loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spectrascope.cli.options import Network, Request
from spectrascope.errors import LoadError, OptionError
from spectrascope.records.report import ModelInfo, ProbeOptions
from spectrascope.records.values import LossName

if TYPE_CHECKING:
    from torch import Tensor

    from spectrascope.loading.loaded import LoadedModel
    from spectrascope.workload import Run


def load_model(network: Network, seed: int, *, headers_only: bool = False) -> LoadedModel:
    """Load the network named; with ``headers_only`` its names and shapes alone, where the format allows."""
    from spectrascope.loading.models.open import load_model

    return load_model(
        network.model,
        arch=network.arch,
        base=network.base,
        num_classes=network.num_classes,
        seed=seed,
        trust_remote_code=network.trust_remote_code,
        headers_only=headers_only,
    )


def make_run(target: Request, options: ProbeOptions, loaded: LoadedModel) -> Run:
    """Give a network its samples and loss: those asked for, or those that the user's own factory brought.

    Raises:
        OptionError: a loss was asked for beside the factory's own.
        DataError: the samples cannot be found or read, or do not fit the network.
    """
    from spectrascope.workload import FirstSamples, Run

    own = loaded.workload
    if own is None or target.dataset is not None:
        from spectrascope.loading.data.open import load_dataset
        from spectrascope.losses import make_loss, problem_loss

        name = problem_loss(loaded.model) if target.loss is LossName.AUTO else target.loss
        loss_fn = make_loss(name, task=loaded.info.task, label_smoothing=target.label_smoothing)
        data = load_dataset(
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
        notes = loaded.notes + data.notes
        return Run(
            loaded.model, data.source, loss_fn, options, loaded.info, data.info, notes=notes, scores=target.scores
        )
    from spectrascope.api import describe_source

    if target.loss is not LossName.AUTO or target.label_smoothing:
        raise OptionError("--loss goes with --dataset: the factory brings a loss of its own")
    source = own.source if own.source.n <= options.num_samples else FirstSamples(own.source, options.num_samples)
    about = describe_source(source)
    scores = own.scores if target.scores is None else target.scores
    return Run(loaded.model, source, own.loss_fn, options, loaded.info, about, notes=loaded.notes, scores=scores)


def load_momentum(target: Request, run: Run) -> dict[str, Tensor]:
    """Read the momentum that the checkpoint's optimizer holds, by the network's names.

    Raises:
        LoadError: none can be found, or it is not of this network.
        OptionError: the model is no file.
    """
    from pathlib import Path

    from spectrascope.loading.checkpoints.momentum import read_momentum

    path = Path((target.model or "").partition("::")[0])
    if not target.model or not path.exists():
        raise OptionError(
            f"--gradient momentum reads an optimizer's state: expected a checkpoint of your own, got "
            f"{target.model or 'the embedded network'}"
        )
    return read_momentum(path, run.model)


def read_tensors(target: Network, *, headers_only: bool) -> tuple[dict[str, Tensor], ModelInfo] | None:
    """Read a checkpoint without its network; ``None`` where the model string names none or something else is wrong."""
    from pathlib import Path

    from spectrascope.loading.checkpoints.read import is_buffer, read_checkpoint

    if target.model is None or target.arch is not None or not Path(target.model.partition("::")[0]).exists():
        return None
    try:
        checkpoint = read_checkpoint(target.model, headers_only=headers_only, aside=is_buffer)
    except LoadError:
        return None
    tensors = dict(checkpoint.state_dict)
    info = ModelInfo(
        id=Path(target.model).name,
        architecture="unknown",
        source="checkpoint",
        path=str(checkpoint.path),
        sha256=checkpoint.sha256,
        weights=f"checkpoint ({checkpoint.choice})" if checkpoint.choice else "checkpoint",
        n_parameters=sum(tensor.numel() for tensor in tensors.values() if tensor.is_floating_point()),
    )
    return tensors, info
