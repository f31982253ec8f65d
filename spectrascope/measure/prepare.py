"""From a model, samples and options to a workload that is known to run: device, dtype, shapes, labels, layout."""

from __future__ import annotations

import platform
import time
from dataclasses import replace

import torch
from torch import nn

from spectrascope.curvature.microbatches import is_out_of_memory, wait_for
from spectrascope.errors import DataError, OptionError
from spectrascope.losses import usual_loss
from spectrascope.network.effective import copy_of, parametrized_weights, unwrapped, with_effective_weights
from spectrascope.records.report import ProbeOptions
from spectrascope.workload import Inputs, LossFunction, SampleSource, Workload

__all__ = ["device_name", "prepare_workload", "require_matching_labels", "with_fastest_format"]


def prepare_workload(
    model: nn.Module, source: SampleSource, loss_fn: LossFunction | None, options: ProbeOptions
) -> Workload:
    """Unwrap the model, resolve device and dtype; copy the model only if it has to change.

    Raises:
        OptionError: an option is out of range, the device does not exist, or the dtype does not exist on it.
        DataError: there are no samples.
    """
    model = unwrapped(model)
    first = next(model.parameters(), None)
    device = _device(options.device, first)
    for name, value in (("--top-k", options.top_k), ("--min-rank", options.min_rank), ("groups", options.groups)):
        if value < 1:
            raise OptionError(f"{name} {value}: must be at least 1")
    if options.micro_batch != "auto" and not (str(options.micro_batch).isdecimal() and int(options.micro_batch) > 0):
        raise OptionError(f"--micro-batch {options.micro_batch!r}: expected auto or a positive number")
    if options.dtype not in ("float32", "float64"):
        raise OptionError(f"--dtype {options.dtype!r}: expected float32 or float64")
    dtype = torch.float64 if options.dtype == "float64" else torch.float32
    if device.type == "mps" and dtype == torch.float64:
        raise OptionError("--dtype float64 does not exist on mps: use float32, or --device cpu")
    if source.n < 1:
        raise DataError("the dataset holds no samples")
    loss_fn = loss_fn or usual_loss(model)
    if parametrized_weights(model):
        model = with_effective_weights(model)
    tensors = [*model.parameters(), *model.buffers()]
    moves = any(t.device != device or (t.is_floating_point() and t.dtype != dtype) for t in tensors)
    if moves:
        model = copy_of(model).to(device, dtype)
    return Workload(model, source, loss_fn, device, dtype)


def _device(name: str, parameter: torch.Tensor | None) -> torch.device:
    if name == "auto":
        if parameter is not None and parameter.device.type != "cpu":
            return parameter.device
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise OptionError(f"--device {name!r}: expected auto, cpu, cuda, cuda:N or mps") from error
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise OptionError(f"--device {name}: no usable CUDA device on this machine; use --device cpu")
        if device.index is not None and device.index >= count:
            raise OptionError(f"--device {name}: this machine has {count} CUDA device(s), numbered from 0")
        return torch.device("cuda", device.index if device.index is not None else torch.cuda.current_device())
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise OptionError("--device mps: not available on this machine; use --device cpu")
    if device.type not in ("cpu", "mps"):
        raise OptionError(f"--device {name!r}: expected auto, cpu, cuda, cuda:N or mps")
    return device


def require_matching_labels(workload: Workload) -> Workload:
    """Check shapes on a few samples before any long work, and labels as they are read."""
    inputs, targets = workload.fetch(0, min(2, workload.source.n))
    try:
        with torch.no_grad():
            output = workload.forward(inputs)
    except (RuntimeError, ValueError, TypeError, AssertionError, IndexError) as error:
        raise DataError(f"the model does not accept {_describe(inputs)}: {_first_line(error)}") from error
    n_classes = _n_classes(output, targets)
    if n_classes is not None:
        workload = replace(workload, n_classes=n_classes)
        workload.fetch(0, min(2, workload.source.n))
    try:
        with torch.no_grad():
            loss = workload.loss_fn(output, targets)
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise DataError(
            f"the loss does not accept the model's output and targets of shape {tuple(targets.shape)}: "
            f"{_first_line(error)}"
        ) from error
    if not isinstance(loss, torch.Tensor) or loss.dim() != 0:
        raise DataError("the loss function must return a scalar tensor: the mean over the samples it is given")
    return workload


def _n_classes(output: object, targets: torch.Tensor) -> int | None:
    """Number of class scores, where the targets are class numbers."""
    if not isinstance(output, torch.Tensor) or targets.is_floating_point() or output.dim() != targets.dim() + 1:
        return None
    axis = -1 if output.shape[:-1] == targets.shape else 1
    # one score goes with a binary or regression loss
    return output.shape[axis] if output.shape[axis] > 1 else None


def _describe(inputs: Inputs) -> str:
    if isinstance(inputs, torch.Tensor):
        return f"inputs of shape {tuple(inputs.shape)} {inputs.dtype}"
    return "inputs " + ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in inputs.items())


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def with_fastest_format(workload: Workload) -> Workload:
    """The workload with images in the memory order that goes through the network faster, by trying both."""
    return replace(workload, channels_last=_is_faster_channels_last(workload))


def _is_faster_channels_last(workload: Workload) -> bool:
    inputs, _ = workload.fetch(0, min(32, workload.source.n))
    if not isinstance(inputs, torch.Tensor) or inputs.dim() != 4:
        return False
    times: dict[bool, float] = {}
    for _ in range(3):  # the first round warms both up
        for last in (False, True):
            x = inputs.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
            x = x.detach().requires_grad_()
            began = time.perf_counter()
            # Input gradients are what the sweeps are made of, and some layouts are slow only there.
            output = workload.forward(x)
            if not isinstance(output, torch.Tensor) or not output.requires_grad:
                return False
            try:
                torch.autograd.grad(output.sum(), x, allow_unused=True)
            except RuntimeError as error:  # the gradient pass says what is wrong with the network
                if is_out_of_memory(error):
                    raise
                return False
            wait_for(workload.device)
            times[last] = min(times.get(last, float("inf")), time.perf_counter() - began)
    return times[True] < times[False]


def device_name(device: torch.device) -> str:
    """The device as a reader would name it."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({platform.machine()})"
