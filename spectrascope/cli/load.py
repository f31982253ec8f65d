"""Load what the command line names: a network, its samples and its loss."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from spectrascope.cli.options import Network, Request
from spectrascope.cli.output import prints_on_stderr
from spectrascope.errors import OptionError
from spectrascope.loading.absent import refuse_absent_data, refuse_absent_model
from spectrascope.records.report import ModelInfo, ProbeOptions

if TYPE_CHECKING:
    from torch import Tensor

    from spectrascope.loading.loaded import LoadedModel
    from spectrascope.workload import Run

_DEFAULT = ProbeOptions()


def refuse_absent(network: Network) -> None:
    """Refuse what is certainly not there, before torch is imported.

    Raises:
        LoadError: no such checkpoint, network or architecture.
        DataError: no such data.
    """
    for spec in (network.model, network.arch, network.base):
        if spec is not None:
            refuse_absent_model(spec)
    if isinstance(network, Request) and network.dataset is not None:
        refuse_absent_data(network.dataset)


def load_model(network: Network, seed: int, *, headers_only: bool = False, dtype: str = _DEFAULT.dtype) -> LoadedModel:
    """Load the network named; with ``headers_only`` its names and shapes alone, where the format allows.

    ``dtype`` is what it will be measured in: only then may a file's bfloat16 stay.
    """
    from spectrascope.loading.models.open import load_model

    with prints_on_stderr():
        return load_model(
            network.model,
            arch=network.arch,
            base=network.base,
            num_classes=network.num_classes,
            seed=seed,
            trust_remote_code=network.trust_remote_code,
            headers_only=headers_only,
            keep_bfloat16=dtype == "bfloat16",
        )


def make_run(target: Request, options: ProbeOptions, loaded: LoadedModel) -> Run:
    """Give a network its samples and loss: those asked for, or those that the user's own factory brought.

    Raises:
        OptionError: a loss, or samples prepared in some way, were asked for beside the factory's own.
        DataError: the samples cannot be found or read, or do not fit the network.
    """
    from spectrascope.api.inputs import run_of_loaded

    return run_of_loaded(
        loaded,
        options,
        target.dataset,
        loss=target.loss,
        label_smoothing=target.label_smoothing,
        scores=target.scores,
        data_root=target.data_root,
        download=target.download,
        image_size=target.image_size,
        resize=target.resize,
        mean=target.mean,
        std=target.std,
        block_size=target.block_size,
        balanced=target.balanced,
        skip_bad=target.skip_bad,
    )


def find_momentum_file(target: Request) -> Path:
    """The checkpoint that ``--gradient momentum`` reads the optimizer's state from.

    Raises:
        OptionError: the model is no file.
    """
    path = Path((target.model or "").partition("::")[0])
    if not target.model or not path.exists():
        raise OptionError(
            f"--gradient momentum reads an optimizer's state: expected a checkpoint of your own, got "
            f"{target.model or 'the embedded network'}"
        )
    return path


def read_tensors(target: Network, *, headers_only: bool) -> tuple[dict[str, Tensor], ModelInfo] | None:
    """Read a checkpoint without its network; ``None`` where the model string names none or something else is wrong."""
    from spectrascope.api.inputs import read_tensors

    if target.model is None or target.arch is not None:
        return None
    return read_tensors(target.model, headers_only=headers_only)
