"""Leave the user's model, and torch itself, exactly as found."""

from __future__ import annotations

import contextlib
import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spectrascope.errors import NondeterministicError, NonFiniteError, UnsupportedModelError
from spectrascope.network.kept import GRADIENT_HOOKS, random_state_kept, settings_kept, state_kept
from spectrascope.numerics.finite import is_finite
from spectrascope.optim.precision import full_float32
from spectrascope.workload import Workload

__all__ = [
    "held_still",
    "require_deterministic",
    "require_finite_weights",
    "require_values",
    "require_whole_tensor",
    "require_whole_weights",
]


@contextlib.contextmanager
def held_still(workload: Workload, weights: Sequence[nn.Parameter]) -> Iterator[set[str]]:
    """Evaluation mode, gradients for ``weights`` only, full float32 precision; everything restored afterwards.

    Restored, also after an exception or Ctrl-C: all that the network and its loss hold (:func:`state_kept`), the random
    state, torch's own settings (:func:`settings_kept`), the attention fast path, the key-value cache of Hugging Face
    language models, gradient checkpointing, the padding row of embedding tables, the fused kernels of recurrent layers.
    Hooks on gradients, by which training masks or clips them, have no effect: what is measured is the loss.
    Of a network that is ``owned``, which nobody holds but the measurement, values are not copied to be put back.

    Yields:
        What the network switches on itself and is held off, in words, as it comes up.
    """
    model = workload.model
    modules = list(model.modules())
    parameters = list(model.parameters())
    wanted = {id(w) for w in weights}
    fastpath = torch.backends.mha.get_fastpath_enabled()
    with contextlib.ExitStack() as stack:
        stack.enter_context(random_state_kept())
        stack.enter_context(settings_kept())
        stack.enter_context(state_kept(model, workload.loss_fn, but_values_of=model if workload.owned else None))
        stack.enter_context(torch.autocast(workload.device.type, enabled=False))
        switched = stack.enter_context(_without_autocast_inside())
        stack.enter_context(full_float32())
        stack.enter_context(_without_caches(modules))
        stack.enter_context(_without_checkpointing(modules))
        stack.enter_context(_without_padding_rows(modules))
        stack.enter_context(_without_fused_recurrence(modules))
        try:
            _evaluate(model)
            for p in parameters:
                p.requires_grad_(id(p) in wanted)
                p.grad = None
                for name in GRADIENT_HOOKS:
                    setattr(p, name, None)
            for module in modules:
                for name in ("_backward_hooks", "_backward_pre_hooks"):
                    setattr(module, name, OrderedDict())
            torch.backends.mha.set_fastpath_enabled(False)
            yield switched
        finally:
            torch.backends.mha.set_fastpath_enabled(fastpath)


def _evaluate(model: nn.Module) -> None:
    try:
        model.eval()
    except NotImplementedError as error:
        raise UnsupportedModelError(
            "the network cannot be put into evaluation mode (an exported program stays in the mode it was exported "
            "in): measure the module that it was made from"
        ) from error


@contextlib.contextmanager
def _without_autocast_inside() -> Iterator[set[str]]:
    """Autocast that the network switches on in its own forward pass has no effect, as that of its caller has none.

    What is measured is then of the precision stated; in bfloat16 small curvatures are off by tens of per cent, and
    casts of weights kept from one pass to the next hang on a graph that is gone. That cache is off for networks that
    switch by other means.
    """
    kind = torch.amp.autocast_mode.autocast
    enter, cached = kind.__enter__, torch.is_autocast_cache_enabled()
    switched: set[str] = set()

    def enter_disabled(self: Any) -> Any:
        if self._enabled:
            switched.add(f"torch.autocast to {str(self.fast_dtype).removeprefix('torch.')}")
        self._enabled = False
        return enter(self)

    try:
        torch.set_autocast_cache_enabled(False)
        kind.__enter__ = enter_disabled  # type: ignore[method-assign]
        yield switched
    finally:
        kind.__enter__ = enter  # type: ignore[method-assign]
        torch.set_autocast_cache_enabled(cached)


@contextlib.contextmanager
def _without_caches(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Keys and values kept for generating the next token cost memory here and are never used."""
    found: list[Any] = [getattr(module, "config", None) for module in modules]
    configs = {id(config): config for config in found if getattr(config, "use_cache", False)}
    try:
        for config in configs.values():
            config.use_cache = False
        yield
    finally:
        for config in configs.values():
            config.use_cache = True


@contextlib.contextmanager
def _without_checkpointing(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Activations thrown away and recomputed hide from a recording, and reentrant checkpoints break autograd."""
    names = ("gradient_checkpointing", "grad_checkpointing")
    found = [(m, name) for m in modules for name in names if vars(m).get(name) is True]
    try:
        for module, name in found:
            setattr(module, name, False)
        yield
    finally:
        for module, name in found:
            setattr(module, name, True)


@contextlib.contextmanager
def _without_fused_recurrence(modules: Sequence[nn.Module]) -> Iterator[None]:
    """The fused LSTM and GRU kernels have no second derivative; step by step they are ordinary products."""
    if not any(isinstance(m, nn.RNNBase) for m in modules):
        yield
        return
    backends: Any = (torch.backends.mkldnn, torch.backends.cudnn)
    before = [backend.enabled for backend in backends]
    try:
        for backend in backends:
            backend.enabled = False
        yield
    finally:
        for backend, enabled in zip(backends, before, strict=True):
            backend.enabled = enabled


@contextlib.contextmanager
def _without_padding_rows(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Embedding tables let autograd ignore their padding row, though the loss depends on it where it is looked up.

    Of a table tied to the head, the gradient and curvature would be those of no function at all.
    """
    tables = [(m, m.padding_idx) for m in modules if isinstance(m, (nn.Embedding, nn.EmbeddingBag))]
    try:
        for table, _ in tables:
            table.padding_idx = None
        yield
    finally:
        for table, row in tables:
            table.padding_idx = row


def _numbers(tensor: Tensor) -> Tensor:
    """The numbers stored in a tensor, of a sparse one (the adjacency of a graph network) those that are not zero."""
    if tensor.layout is torch.strided:
        return tensor
    if tensor.layout is torch.sparse_coo:
        return tensor.coalesce().values()
    return tensor.values()


_SHARDED_TENSORS = frozenset({"DTensor", "FlatParameter"})
_SHARDED_MODULES = frozenset({"FSDPModule", "FullyShardedDataParallel"})


def require_whole_weights(model: nn.Module) -> None:
    """Refuse a network whose weights are spread over processes, or not there, before anything of it is touched.

    Told by the names of classes and attributes, so that neither ``torch.distributed`` nor accelerate is imported.

    Raises:
        UnsupportedModelError: says how to gather the weights.
    """
    for name, module in model.named_modules():
        hook = getattr(module, "_hf_hook", None)
        if any(getattr(one, "offload", False) for one in (hook, *getattr(hook, "hooks", ()))):
            raise UnsupportedModelError(
                f"the module {name or type(module).__name__!r} is offloaded by accelerate (device_map): its weights "
                "are there only while it runs, as copies made anew each time; load the network whole, on the CPU, and "
                "measure that with --device-map auto"
            )
        if _SHARDED_MODULES & {kind.__name__ for kind in type(module).__mro__}:
            raise _sharded(f"the module {name or type(module).__name__!r} is sharded by FSDP")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise UnsupportedModelError(
                f"the weight {name!r} has no shape yet (a lazy module): run the network once on a batch first, or take "
                "the module out where the network never runs it"
            )
        require_whole_tensor(name, tensor)


def require_values(model: nn.Module) -> None:
    """Refuse a network of which there are names and shapes alone.

    Raises:
        UnsupportedModelError: a tensor is on the meta device.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise UnsupportedModelError(
                f"{name!r} has a shape and no values (it is on the meta device): load the network's weights, or look "
                "at its names and shapes with inspect"
            )


def require_whole_tensor(name: str, tensor: Tensor) -> None:
    """Refuse a tensor of which this process holds a part.

    Raises:
        UnsupportedModelError: says how to gather it.
    """
    kinds = {kind.__name__ for kind in (*type(tensor).__mro__, *type(getattr(tensor, "data", tensor)).__mro__)}
    if _SHARDED_TENSORS & kinds:
        raise _sharded(f"the weight {name!r} is spread over processes ({type(tensor).__name__})")


def _sharded(what: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{what}: gather the whole weights with torch.distributed.checkpoint.state_dict.get_model_state_dict(model, "
        "options=StateDictOptions(full_state_dict=True)), load them into a plain copy of the network, and measure that"
    )


def require_finite_weights(model: nn.Module) -> None:
    """Raise if a parameter or buffer holds NaN or infinity.

    Raises:
        NonFiniteError: names the first such tensor.
    """
    for kind, named in (("parameter", model.named_parameters()), ("buffer", model.named_buffers())):
        for name, tensor in named:
            if not tensor.is_floating_point():
                continue
            numbers = _numbers(tensor)
            if is_finite(numbers):
                continue
            fine = torch.isfinite(numbers)
            if kind == "buffer":
                fine |= torch.isneginf(numbers)  # attention masks are kept as buffers
            if not bool(fine.all()):
                bad = int((~fine).sum())
                raise NonFiniteError(
                    f"{kind} {name!r} holds NaN or infinity in {bad} of {tensor.numel()} entries: "
                    "the checkpoint is damaged or training diverged; nothing can be measured on it"
                )


def require_deterministic(workload: Workload, n_samples: int = 32) -> None:
    """Run the model twice on the same few samples and compare the losses.

    Raises:
        NondeterministicError: the losses differ (dropout left on, sampling inside the model or the loss).
        NonFiniteError: the loss is NaN or infinite.
    """
    inputs, targets = workload.fetch(0, min(n_samples, workload.source.n))
    with torch.no_grad():
        first, second = (float(workload.loss(inputs, targets)) for _ in range(2))
    if not (math.isfinite(first) and math.isfinite(second)):
        raise NonFiniteError(
            f"the loss on the first {len(targets)} samples is {first}: expected a finite number; "
            "check the preprocessing, the labels and the weights"
        )
    if abs(first - second) > 1e-5 * max(abs(first), abs(second), 1e-30):
        raise NondeterministicError(
            f"two identical passes gave losses {first:.9g} and {second:.9g}: the model or loss is random in eval "
            "mode; make it deterministic (no dropout or sampling) before measuring"
        )
