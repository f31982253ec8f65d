"""What callers hand over, as something to measure: objects in memory, or the names of files, networks and data."""

from __future__ import annotations

import inspect
import os
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from spectrascope.api.options import RequestKeywords, of_data, of_measurement, of_network, opened
from spectrascope.errors import DataError, LoadError, OptionError
from spectrascope.loading.checkpoints.momentum import momentum_of, read_momentum
from spectrascope.losses import make_loss, problem_loss, task_of
from spectrascope.network.effective import unwrapped
from spectrascope.network.guards import require_whole_weights
from spectrascope.network.kept import fixed_source
from spectrascope.records.report import DataInfo, ModelInfo, ProbeOptions
from spectrascope.records.signal import GradientSource
from spectrascope.records.values import ALL_SAMPLES, LossName, Missing
from spectrascope.workload import (
    FirstSamples,
    LossFunction,
    OnProgress,
    Run,
    SampleSource,
    shape_of,
)

if TYPE_CHECKING:
    from spectrascope.loading.loaded import LoadedModel

__all__ = [
    "Network",
    "describe_model",
    "describe_source",
    "is_named",
    "make_run",
    "open_network",
    "read_tensors",
    "refuse_opened",
    "run_of_loaded",
]

Network: TypeAlias = "nn.Module | str | os.PathLike[str] | Mapping[str, Any]"
"""A network in memory; MODEL of the command line, a path among others; or a state dict."""


def make_run(
    name: str,
    model: Network,
    batches: object,
    loss_fn: LossFunction | str | None,
    on_progress: OnProgress,
    given: RequestKeywords,
) -> Run:
    """Settle what the caller left open: network, samples, their number, dtype, loss, provenance.

    Raises:
        SpectrascopeError: something cannot be loaded, or options do not go together.
    """
    how = opened(name, given)
    refuse_opened(how, model)
    chosen = of_measurement(given)
    momentum, scores = chosen.pop("momentum"), chosen.pop("scores")
    if isinstance(model, nn.Module):
        run = _of_memory(model, batches, loss_fn, chosen)
    else:
        run = _of_name(model, batches, loss_fn, chosen, how)
    if isinstance(momentum, Optimizer):
        momentum = momentum_of(momentum, run.model)
    elif momentum is None and run.options.gradient is GradientSource.MOMENTUM:
        if not isinstance(model, (str, os.PathLike)) or not Path(model).exists():
            raise OptionError("gradient 'momentum': pass momentum=, the optimizer or its buffers by parameter name")
        momentum = read_momentum(Path(model), run.model)
    if momentum is not None:
        run = replace(run, options=replace(run.options, gradient=GradientSource.MOMENTUM))
    if scores is not None:
        run = replace(run, scores=str(scores))
    called = type(model).__name__ if isinstance(model, nn.Module) else repr(_spec(model))
    return replace(run, command=f"spectrascope.{name}({called})", on_progress=on_progress, momentum=momentum)


def _of_memory(model: nn.Module, batches: object, loss_fn: LossFunction | str | None, chosen: dict[str, Any]) -> Run:
    if is_named(batches):
        raise DataError(
            f"batches {str(batches)!r}: data by name goes with a network by name, which says what inputs it takes; "
            "expected (inputs, targets) tensors, a DataLoader, or a path or name in the place of the model"
        )
    if batches is None:
        raise DataError("batches: expected (inputs, targets) tensors or a DataLoader for a network in memory, got None")
    most = chosen["num_samples"]
    source = fixed_source(batches, most)
    if most is not None and source.n > most:  # a source of the user's own
        source = FirstSamples(source, most)
    model = unwrapped(model)
    if chosen["dtype"] is None:
        double = any(p.dtype == torch.float64 for p in model.parameters())
        chosen["dtype"] = "float64" if double else "float32"
    if isinstance(loss_fn, str):
        loss_fn = None if loss_fn == LossName.AUTO.value else make_loss(loss_fn, task=task_of(model))
    options = ProbeOptions(**{**chosen, "num_samples": source.n})
    return Run(model, source, loss_fn, options, describe_model(model), describe_source(source))


def _of_name(
    model: object, batches: object, loss_fn: LossFunction | str | None, chosen: dict[str, Any], how: dict[str, Any]
) -> Run:
    network = open_network(model, seed=chosen["seed"], keep_bfloat16=chosen["dtype"] == "bfloat16", how=how)
    chosen["dtype"] = chosen["dtype"] or "float32"
    how = of_data(how)
    if batches is not None and not is_named(batches):
        _refuse(how, "samples in memory")
        run = _of_memory(network.model, batches, loss_fn or _usual(network), chosen)
        return replace(run, model_info=network.info, notes=network.notes, owned=network.owned)
    chosen["num_samples"] = chosen["num_samples"] or ProbeOptions().num_samples
    by_name = loss_fn if isinstance(loss_fn, str) else LossName.AUTO
    if how.get("label_smoothing") and not (loss_fn is None or isinstance(loss_fn, str)):
        raise OptionError("label_smoothing: no effect beside a loss of your own; build it into that")
    dataset = None if batches is None else os.fspath(batches)  # type: ignore[call-overload]
    run = run_of_loaded(network, ProbeOptions(**chosen), dataset, loss=by_name, **how)
    return run if loss_fn is None or isinstance(loss_fn, str) else replace(run, loss_fn=loss_fn)


def refuse_opened(how: Mapping[str, Any], model: object) -> None:
    """Refuse keywords that say how a network that is named is opened, and its data, beside one in memory.

    Raises:
        OptionError: there are some.
    """
    if isinstance(model, nn.Module):
        _refuse(how, "a network in memory")
    elif isinstance(model, Mapping):
        _refuse([name for name in of_network(how) if name != "arch"], "a state dict")


def _refuse(names: Collection[str], what: str) -> None:
    if names:
        raise OptionError(f"{', '.join(names)}: no effect on {what}")


def _usual(network: LoadedModel, label_smoothing: float = 0.0) -> LossFunction:
    """The loss of a loaded network's own: of its task, or what a Hugging Face classifier says its problem is."""
    return make_loss(problem_loss(network.model), task=network.info.task, label_smoothing=label_smoothing)


def open_network(
    model: object,
    *,
    seed: int = 0,
    headers_only: bool = False,
    keep_bfloat16: bool = False,
    how: Mapping[str, Any] | None = None,
) -> LoadedModel:
    """Load a network that a name, a path or a state dict stands for; ``how`` holds ``NetworkKeywords``, and others.

    Raises:
        LoadError: it cannot be loaded.
        OptionError: it is none of these.
    """
    from spectrascope.loading.models.open import load_model, load_weights

    ways = of_network(how or {})
    if isinstance(model, Mapping):
        return load_weights(model, arch=ways.get("arch"), seed=seed)
    return load_model(_spec(model), seed=seed, headers_only=headers_only, keep_bfloat16=keep_bfloat16, **ways)


def _spec(model: object) -> str | None:
    if model is None or is_named(model):
        return None if model is None else os.fspath(model)  # type: ignore[call-overload]
    if isinstance(model, Mapping):
        return "state dict"
    raise OptionError(
        f"model: expected a torch.nn.Module, a path or name such as 'ckpt.pt' or 'hf:org/name', or a state dict, got "
        f"{type(model).__name__}"
    )


def is_named(item: object) -> bool:
    """Whether something is the name of a file, a network or a dataset, and not the thing itself."""
    return isinstance(item, (str, os.PathLike))


def run_of_loaded(
    network: LoadedModel,
    options: ProbeOptions,
    dataset: str | None,
    *,
    loss: LossName | str = LossName.AUTO,
    label_smoothing: float = 0.0,
    scores: str | None = None,
    **how: Any,
) -> Run:
    """Give a loaded network its samples and loss: those asked for, or those that the user's own factory brought.

    Args:
        network: as loaded.
        options: what will be measured; ``num_samples`` may be ``ALL_SAMPLES``.
        dataset: DATA of the command line; ``None`` for the factory's own, or the one the network implies.
        loss: by name.
        label_smoothing: of cross-entropy.
        scores: name of the output that the loss compares, where the network returns several tensors.
        how: more of :func:`spectrascope.loading.data.open.load_dataset`.

    Raises:
        OptionError: a loss, or samples prepared in some way, were asked for beside the factory's own.
        DataError: the samples cannot be found or read, or do not fit the network.
    """
    own = network.workload
    if own is None or dataset is not None:
        from spectrascope.loading.data.open import load_dataset

        loss_fn = (
            _usual(network, label_smoothing)
            if loss == LossName.AUTO
            else make_loss(loss, task=network.info.task, label_smoothing=label_smoothing)
        )
        data = load_dataset(
            dataset, network, num_samples=options.num_samples, seed=options.seed, loss=LossName(loss), **how
        )
        run = Run(network.model, data.source, loss_fn, options, network.info, data.info)
        run = replace(run, notes=network.notes + data.notes)
    else:
        if loss != LossName.AUTO or label_smoothing:
            raise OptionError("--loss goes with --dataset: the factory brings a loss of its own")
        for given in ("image_size", "resize", "mean", "std", "block_size", "balanced", "skip_bad"):
            if how.get(given):
                option = f"--{given.replace('_', '-')}"
                raise OptionError(f"{option} goes with --dataset: the factory brings samples of its own")
        source = own.source if own.source.n <= options.num_samples else FirstSamples(own.source, options.num_samples)
        about = describe_source(source)
        run = Run(network.model, source, own.loss_fn, options, network.info, about, notes=network.notes)
        scores = own.scores if scores is None else scores
    run = replace(run, scores=scores, owned=network.owned)
    if options.num_samples == ALL_SAMPLES:
        run = replace(run, options=replace(options, num_samples=run.source.n))
    return run


def read_tensors(spec: str, *, headers_only: bool) -> tuple[dict[str, Tensor], ModelInfo] | None:
    """Read a checkpoint without its network; ``None`` where the string names none or something else is wrong."""
    from spectrascope.loading.checkpoints.read import is_buffer, read_checkpoint

    if not Path(spec.partition("::")[0]).exists():
        return None
    try:
        checkpoint = read_checkpoint(spec, headers_only=headers_only, aside=is_buffer)
    except LoadError:
        return None
    tensors = dict(checkpoint.state_dict)
    info = ModelInfo(
        id=Path(spec).name,
        architecture="unknown",
        source="checkpoint",
        path=str(checkpoint.path),
        sha256=checkpoint.sha256,
        weights=f"checkpoint ({checkpoint.choice})" if checkpoint.choice else "checkpoint",
        n_parameters=sum(tensor.numel() for tensor in tensors.values() if tensor.is_floating_point()),
    )
    return tensors, info


def describe_model(model: nn.Module) -> ModelInfo:
    """Describe a network in memory, as far as its class tells.

    Raises:
        UnsupportedModelError: its weights are spread over processes, or have no shape yet.
    """
    require_whole_weights(model)
    return ModelInfo(
        id=type(model).__name__,
        architecture=type(model).__name__,
        source="python",
        path=Missing("the model was passed in memory"),
        sha256=Missing("the model was passed in memory"),
        weights="in memory",
        n_parameters=sum(p.numel() for p in model.parameters()),
        task=task_of(model),
    )


def describe_source(source: SampleSource) -> DataInfo:
    """Describe samples that come from the user's own code, as far as tensors tell."""
    inputs, targets = source.fetch(0, 1)
    labels: int | Missing = Missing("targets are not class labels")
    if _is_label(targets):
        labels = 1 + max(int(part.max()) for _, part in source.all_targets(1024))
    whole = source.source if isinstance(source, FirstSamples) else source
    where = inspect.getmodule(type(whole))
    return DataInfo(
        id="tensors" if where is not None and where.__name__ == "spectrascope.workload" else type(whole).__name__,
        n=source.n,
        n_available=Missing("the samples were passed in memory") if whole is source else whole.n,
        digest=source.digest(),
        input_shape=shape_of(inputs),
        n_classes=labels,
        preprocessing="as passed",
        label_order="as passed",
        synthetic=False,
    )


def _is_label(targets: Tensor) -> bool:
    return targets.dim() == 1 and not targets.is_floating_point()
