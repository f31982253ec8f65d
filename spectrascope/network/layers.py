"""Which weights are measured, how each is seen as an m × n matrix, and why others are left out.

Weights are keyed by parameter name, never by position. A parameter reached under several names (tied embedding
and head, a shared module) is one weight; its other names are listed with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from spectrascope.errors import OptionError, UnsupportedModelError
from spectrascope.network.fused import Blocks, fused_blocks
from spectrascope.optim.groups import is_gain
from spectrascope.records.report import NOT_SELECTED, LayerInfo, SkippedLayer
from spectrascope.records.values import LayerKind, LayerRole, LayerStatus
from spectrascope.text import matches

__all__ = ["WeightLayer", "find_layers", "find_vectors"]

_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CONV_TRANSPOSE = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_TABLES = (nn.Embedding, nn.EmbeddingBag)
_LETTERS = ("q", "k", "v")
_HEAD_NAME = re.compile(r"(^|\.)(lm_head|embed_out)\.weight$")  # not tied to a table, it is one all the same
_TABLE_NAME = re.compile(r"(^|_)(pos|position|positional|embed|embedding|embeddings|token|tokens|queries|latents)(_|$)")


@dataclass(frozen=True)
class WeightLayer:
    """One weight and its view as a matrix W (m × n), m outputs and n inputs.

    ``layout`` says how the stored tensor becomes (rows, n): ``flat`` (out, …) → (out, rest), ``transposed``
    (in, out), ``conv_transpose`` (in, out/groups, …) → (out/groups, in · kernel). ``expert`` picks one matrix of
    a stack (E, m, n), as stored. ``rows`` picks the runs of rows of a block (the q of a fused q, k, v); all rows
    when ``None``.
    """

    info: LayerInfo
    parameter: nn.Parameter
    layout: str = "flat"
    rows: tuple[slice, ...] | None = None
    expert: int | None = None

    @property
    def name(self) -> str:
        """Parameter name, with ``[q]``, ``[3]`` and the like for a block of a fused or stacked weight."""
        return self.info.name

    def matrix(self, tensor: Tensor) -> Tensor:
        """View a tensor shaped like the parameter as (m, n); a block of several runs is copied."""
        whole = self._whole(tensor)
        if self.rows is None:
            return whole
        return whole[self.rows[0]] if len(self.rows) == 1 else torch.cat([whole[run] for run in self.rows])

    def _whole(self, tensor: Tensor) -> Tensor:
        if self.expert is not None:
            tensor = tensor[self.expert]
        if self.layout == "transposed":
            return tensor.t()
        if self.layout == "conv_transpose":
            return tensor.transpose(0, 1).flatten(1)
        return tensor.flatten(1)

    def tensor(self, matrix: Tensor) -> Tensor:
        """The inverse of :meth:`matrix`: shaped like the parameter, zero outside the block."""
        whole = self.embed_left(matrix)
        shape = tuple(self.parameter.shape)[self.expert is not None :]
        if self.layout == "transposed":
            stored = whole.t()
        elif self.layout == "conv_transpose":
            stored = whole.reshape(shape[1], shape[0], *shape[2:]).transpose(0, 1)
        else:
            stored = whole.reshape(shape)
        if self.expert is None:
            return stored
        stack = matrix.new_zeros(self.parameter.shape)
        stack[self.expert] = stored
        return stack

    def embed_left(self, left: Tensor) -> Tensor:
        """Rows (m, k) put back where they stand among the rows of the whole weight, zero elsewhere."""
        if self.rows is None:
            return left
        axis = {"transposed": 1, "conv_transpose": 1}.get(self.layout, 0) + (self.expert is not None)
        whole = left.new_zeros(self.parameter.shape[axis], left.shape[1])
        at = 0
        for run in self.rows:
            size = run.stop - run.start
            whole[run] = left[at : at + size]
            at += size
        return whole


def find_layers(
    model: nn.Module, include: Sequence[str] = (), exclude: Sequence[str] = (), *, split_fused: bool = True
) -> list[WeightLayer | SkippedLayer]:
    """Every weight of at least two dimensions, in the model's own order.

    Args:
        model: any module, in memory or on the meta device.
        include: shell-style globs on parameter names; empty means all. Naming an embedding table measures it.
        exclude: globs that leave weights out.
        split_fused: whether fused q, k, v weights of a known layout are three rows, or one.

    Returns:
        A :class:`WeightLayer` to measure, or a :class:`SkippedLayer` that says why not, per candidate.
        One-dimensional parameters (biases, normalisation gains) are not candidates; see :func:`find_vectors`.

    Raises:
        OptionError: a glob matches no candidate, or the model has none.
        UnsupportedModelError: the model holds quantized weights.
    """
    _require_floating_point(model)
    candidates = [c for owned in _parameters(model) if owned.is_matrix for c in _see(owned, split_fused)]
    if not candidates:
        raise OptionError("the model has no weight of two or more dimensions: nothing to measure")
    names = [c.info.name for c in candidates]
    for option, globs in (("--layers", include), ("--exclude", exclude)):
        for glob in globs:
            if not any(matches(glob, name) for name in names):
                raise OptionError(f"{option} {glob!r} matches none of the {len(names)} weights, e.g. {names[0]!r}")
    found: list[WeightLayer | SkippedLayer] = []
    for candidate in candidates:
        name = candidate.info.name
        if include and not any(matches(glob, name) for glob in include):
            found.append(SkippedLayer(candidate.info, LayerStatus.SKIPPED, NOT_SELECTED))
        elif any(matches(glob, name) for glob in exclude):
            found.append(SkippedLayer(candidate.info, LayerStatus.SKIPPED, "excluded by --exclude"))
        elif isinstance(candidate, SkippedLayer) and not (include and _is_measurable_table(candidate.info)):
            found.append(candidate)
        elif isinstance(candidate, SkippedLayer):
            found.append(WeightLayer(candidate.info, model.get_parameter(name)))
        else:
            found.append(candidate)
    return found


def find_vectors(model: nn.Module) -> list[SkippedLayer]:
    """The parameters that are no matrices, in the model's own order: no singular directions, never measured."""
    found = []
    for owned in _parameters(model):
        if owned.is_matrix:
            continue
        normalises = "norm" in type(owned.module).__name__.lower()
        if owned.local.endswith("bias"):
            kind, role = LayerKind.BIAS, LayerRole.BIAS
        elif normalises:
            kind, role = LayerKind.NORM, LayerRole.NORM
        else:
            kind, role = LayerKind.OTHER, LayerRole.OTHER
        size = owned.parameter.numel()
        info = owned.info(kind, role, (size, 1))
        entrywise = "a gain or bias over several dimensions acts entry by entry: it is no matrix"
        reason = entrywise if owned.parameter.dim() > 1 else "a vector has no singular directions"
        found.append(SkippedLayer(info, LayerStatus.SKIPPED, reason))
    return found


def _is_measurable_table(info: LayerInfo) -> bool:
    return info.role is LayerRole.EMBEDDING and len(info.stored_shape) == 2


def _require_floating_point(model: nn.Module) -> None:
    for name, module in model.named_modules():
        kind = type(module)
        packed = ".nn.quantized." in f".{kind.__module__}." or ".nn.intrinsic.quantized" in kind.__module__
        whole = next((local for local, p in module._parameters.items() if p is not None and _is_integer(p)), None)
        if packed or whole is not None:
            what = f"{name}.{whole}" if whole and name else whole or name
            raise UnsupportedModelError(
                f"the weight {what!r} is quantized ({kind.__name__}): its gradient does not exist; load the "
                "checkpoint it was quantized from"
            )


def _is_integer(parameter: nn.Parameter) -> bool:
    if isinstance(parameter, UninitializedParameter):
        return False
    return not (parameter.is_floating_point() or parameter.is_complex())


@dataclass(frozen=True)
class _Owned:
    """A parameter, every name it goes by, and the module that says what kind of weight it is."""

    parameter: nn.Parameter
    names: tuple[str, ...]
    module: nn.Module
    local: str
    parent: nn.Module | None  # of the module
    child: str  # the module's name in it
    tied_to_table: bool

    @property
    def is_matrix(self) -> bool:
        if isinstance(self.parameter, UninitializedParameter):
            return True
        return self.parameter.dim() >= 2 and not is_gain(self.module, self.parameter)

    @property
    def stored(self) -> tuple[int, ...]:
        return () if isinstance(self.parameter, UninitializedParameter) else tuple(self.parameter.shape)

    def info(self, kind: LayerKind, role: LayerRole, shape: tuple[int, int], suffix: str = "") -> LayerInfo:
        name, *others = self.names
        tied = tuple(other + suffix for other in others)
        frozen = not self.parameter.requires_grad
        return LayerInfo(name + suffix, kind, role, shape, self.stored, tied, frozen)

    def is_expert(self) -> bool:
        """Whether the names say that this is one of a mixture's experts."""
        within = self.names[0].lower().split(".")[:-1]
        return any(part in ("experts", "expert") for part in within) or "Expert" in type(self.module).__name__


def _parameters(model: nn.Module) -> Iterator[_Owned]:
    modules = dict(model.named_modules(remove_duplicate=False))
    owners: dict[int, list[tuple[str, str, nn.Module]]] = {}
    order: list[nn.Parameter] = []
    for prefix, module in modules.items():
        for local, parameter in module._parameters.items():
            if parameter is None:
                continue
            if id(parameter) not in owners:
                order.append(parameter)
            owners.setdefault(id(parameter), []).append((prefix, local, module))
    for parameter in order:
        found = owners[id(parameter)]
        names = tuple(dict.fromkeys(f"{prefix}.{local}" if prefix else local for prefix, local, _ in found))
        # Of a tied pair, the use as a matrix decides what kind of weight it is.
        prefix, local, module = next((o for o in found if not isinstance(o[2], _TABLES)), found[0])
        above, _, child = prefix.rpartition(".")
        yield _Owned(
            parameter, names, module, local,
            parent=modules.get(above) if prefix else None,
            child=child,
            tied_to_table=any(isinstance(owner, nn.Embedding) for _, _, owner in found),
        )  # fmt: skip


def _see(owned: _Owned, split_fused: bool) -> Iterator[WeightLayer | SkippedLayer]:
    parameter, module, local, stored = owned.parameter, owned.module, owned.local, owned.stored
    if isinstance(parameter, UninitializedParameter):
        info = owned.info(LayerKind.OTHER, LayerRole.OTHER, (0, 0))
        yield _skip(info, "the parameter is not initialised yet: run one forward pass first")
        return
    flat = (stored[0], parameter.numel() // max(stored[0], 1))
    other = owned.info(LayerKind.OTHER, LayerRole.OTHER, flat)
    if 0 in stored:
        yield _skip(other, "the parameter is empty")
    elif parameter.is_complex():
        yield _skip(other, "complex weights are not measured")
    elif parameter.layout is not torch.strided:
        yield _skip(other, "sparse weights are not measured")
    elif isinstance(module, _CONV) and local == "weight":
        yield WeightLayer(owned.info(LayerKind.CONV, LayerRole.CONV, flat), parameter)
    elif isinstance(module, _CONV_TRANSPOSE) and local == "weight":
        shape = (stored[1], parameter.numel() // stored[1])
        yield WeightLayer(owned.info(LayerKind.CONV_TRANSPOSE, LayerRole.CONV, shape), parameter, "conv_transpose")
    elif isinstance(module, _TABLES):
        table = owned.info(LayerKind.EMBEDDING, LayerRole.EMBEDDING, flat)
        yield _skip(table, "embedding look-up table: name it with --layers to measure it")
    elif len(stored) == 2:
        yield from _see_matrix(owned, split_fused)
    elif len(stored) == 3 and owned.is_expert():
        # As stored: which axis is the input differs from class to class, and no number depends on it.
        for i in range(stored[0]):
            info = owned.info(LayerKind.LINEAR, LayerRole.EXPERT, (stored[1], stored[2]), f"[{i}]")
            yield WeightLayer(info, parameter, expert=i)
    elif _TABLE_NAME.search(local):
        learned = owned.info(LayerKind.EMBEDDING, LayerRole.EMBEDDING, flat)
        yield _skip(learned, "learned positions or tokens: added to activations, not applied to them")
    else:
        yield _skip(other, f"a {len(stored)}-D parameter of {type(module).__name__} has no single matrix view")


def _see_matrix(owned: _Owned, split_fused: bool) -> Iterator[WeightLayer | SkippedLayer]:
    parameter, module, local, stored = owned.parameter, owned.module, owned.local, owned.stored
    linear = isinstance(module, nn.Linear)
    # Hugging Face's Conv1D is a linear layer that stores (in, out).
    transposed = type(module).__name__ == "Conv1D" and local == "weight"
    shape = (stored[1], stored[0]) if transposed else (stored[0], stored[1])
    layout = "transposed" if transposed else "flat"
    if not linear and not transposed and not owned.tied_to_table:
        if local.endswith(("bias", "bias_table")):
            info = owned.info(LayerKind.BIAS, LayerRole.BIAS, shape)
            yield _skip(info, "a bias: added to activations, not applied to them")
            return
        if _TABLE_NAME.search(local):
            info = owned.info(LayerKind.EMBEDDING, LayerRole.EMBEDDING, shape)
            yield _skip(info, "learned positions or tokens: name it with --layers to measure it")
            return
    kind = LayerKind.LINEAR if linear or transposed or owned.tied_to_table else LayerKind.OTHER
    role = LayerRole.EXPERT if owned.is_expert() else LayerRole.MATRIX
    if owned.tied_to_table or _HEAD_NAME.search(owned.names[0]):
        role = LayerRole.UNEMBEDDING
    blocks = _blocks(owned, shape) if split_fused else None
    if blocks is None:
        yield WeightLayer(owned.info(kind, role, shape), parameter, layout)
        return
    for letter, runs in blocks.items():
        size = sum(run.stop - run.start for run in runs)
        info = owned.info(LayerKind.LINEAR, role, (size, shape[1]), f"[{letter}]")
        yield WeightLayer(info, parameter, layout, rows=runs)


def _blocks(owned: _Owned, shape: tuple[int, int]) -> Blocks | None:
    module, local = owned.module, owned.local
    if isinstance(module, nn.MultiheadAttention) and local == "in_proj_weight":
        size = shape[0] // 3
        return {letter: (slice(i * size, (i + 1) * size),) for i, letter in enumerate(_LETTERS)}
    experts = getattr(module, "moe_num_experts", None)
    if type(module).__name__ == "DbrxExpertGLU" and isinstance(experts, int):  # (experts · hidden, width)
        size = shape[0] // experts
        return {str(i): (slice(i * size, (i + 1) * size),) for i in range(experts)}
    if owned.parent is None or local != "weight":
        return None
    return fused_blocks(owned.parent, owned.child, *shape)


def _skip(info: LayerInfo, reason: str) -> SkippedLayer:
    return SkippedLayer(info, LayerStatus.SKIPPED, reason)
