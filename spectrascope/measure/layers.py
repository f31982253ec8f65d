"""Which weights are measured, how each is seen as an m × n matrix, and why others are left out.

Weights are keyed by parameter name, never by position. A parameter reached under several names (tied embedding
and head, a shared module) is one weight; its other names are listed with it.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from spectrascope.errors import OptionError
from spectrascope.records import NOT_SELECTED, LayerInfo, LayerKind, LayerRole, LayerStatus, SkippedLayer

__all__ = ["WeightLayer", "find_layers"]

_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CONV_TRANSPOSE = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_QKV = ("q", "k", "v")


@dataclass(frozen=True)
class WeightLayer:
    """One weight and its view as a matrix W (m × n), m outputs and n inputs.

    ``layout`` says how the stored tensor becomes (rows, n): ``flat`` (out, …) → (out, rest), ``transposed``
    (in, out), ``conv_transpose`` (in, out/groups, …) → (out/groups, in · kernel). ``rows`` picks a stacked
    block (the q of a fused q, k, v), all rows when ``None``.
    """

    info: LayerInfo
    parameter: nn.Parameter
    layout: str = "flat"
    rows: slice | None = None

    @property
    def name(self) -> str:
        """Parameter name, with ``[q]`` and the like for a block of a fused weight."""
        return self.info.name

    def matrix(self, tensor: Tensor) -> Tensor:
        """View a tensor shaped like the parameter (after any leading batch axes: none) as (m, n)."""
        if self.layout == "transposed":
            whole = tensor.t()
        elif self.layout == "conv_transpose":
            whole = tensor.transpose(0, 1).flatten(1)
        else:
            whole = tensor.flatten(1)
        return whole if self.rows is None else whole[self.rows]

    def tensor(self, matrix: Tensor) -> Tensor:
        """The inverse of :meth:`matrix`: shaped like the parameter, zero outside the block."""
        shape = tuple(self.parameter.shape)
        if self.rows is not None:
            whole = matrix.new_zeros(shape[0], matrix.shape[1])
            whole[self.rows] = matrix
            matrix = whole
        if self.layout == "transposed":
            return matrix.t()
        if self.layout == "conv_transpose":
            return matrix.reshape(shape[1], shape[0], *shape[2:]).transpose(0, 1)
        return matrix.reshape(shape)

    def embed_left(self, left: Tensor) -> Tensor:
        """Left vectors (m, k) placed in the rows of the whole stored weight, zero elsewhere."""
        if self.rows is None:
            return left
        whole = left.new_zeros(self.parameter.shape[0], left.shape[1])
        whole[self.rows] = left
        return whole


def find_layers(
    model: nn.Module, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> list[WeightLayer | SkippedLayer]:
    """Every weight of at least two dimensions, in the model's own order.

    Args:
        model: any module.
        include: shell-style globs on parameter names; empty means all. Naming an embedding table measures it.
        exclude: globs that leave weights out.

    Returns:
        A :class:`WeightLayer` to measure, or a :class:`SkippedLayer` that says why not, per candidate.
        One-dimensional parameters (biases, normalisation gains) are not candidates.

    Raises:
        OptionError: a glob matches no candidate, or the model has none.
    """
    candidates = list(_candidates(model))
    if not candidates:
        raise OptionError("the model has no weight of two or more dimensions: nothing to measure")
    names = [c.info.name for c in candidates]
    for option, globs in (("--layers", include), ("--exclude", exclude)):
        for glob in globs:
            if not any(_matches(name, [glob]) for name in names):
                raise OptionError(f"{option} {glob!r} matches none of the {len(names)} weights, e.g. {names[0]!r}")
    found: list[WeightLayer | SkippedLayer] = []
    for candidate in candidates:
        name = candidate.info.name
        if include and not _matches(name, include):
            found.append(SkippedLayer(candidate.info, LayerStatus.SKIPPED, NOT_SELECTED))
        elif _matches(name, exclude):
            found.append(SkippedLayer(candidate.info, LayerStatus.SKIPPED, "excluded by --exclude"))
        elif isinstance(candidate, SkippedLayer) and not (include and candidate.info.role is LayerRole.EMBEDDING):
            found.append(candidate)
        elif isinstance(candidate, SkippedLayer):
            parameter = model.get_parameter(name)
            found.append(WeightLayer(candidate.info, parameter))
        else:
            found.append(candidate)
    return found


def _matches(name: str, globs: Sequence[str]) -> bool:
    # A weight name may itself contain brackets (``in_proj_weight[q]``), so an exact match always counts.
    return any(name == glob or fnmatch.fnmatchcase(name, glob) for glob in globs)


def _candidates(model: nn.Module) -> Iterator[WeightLayer | SkippedLayer]:
    owners: dict[int, list[tuple[str, nn.Module, str]]] = {}
    order: list[nn.Parameter] = []
    for prefix, module in model.named_modules(remove_duplicate=False):
        for local, parameter in module._parameters.items():
            if parameter is None:
                continue
            if id(parameter) not in owners:
                order.append(parameter)
            owners.setdefault(id(parameter), []).append((f"{prefix}.{local}" if prefix else local, module, local))
    for parameter in order:
        if isinstance(parameter, UninitializedParameter) or parameter.dim() >= 2:
            yield from _see(parameter, owners[id(parameter)])


def _see(parameter: nn.Parameter, owners: list[tuple[str, nn.Module, str]]) -> Iterator[WeightLayer | SkippedLayer]:
    name, module, local = owners[0]
    # Of a tied pair, the use as a matrix decides what kind of weight it is.
    for _, other, other_local in owners:
        if not isinstance(other, nn.Embedding):
            module, local = other, other_local
            break
    names = tuple(dict.fromkeys(o[0] for o in owners))
    stored = tuple(parameter.shape) if not isinstance(parameter, UninitializedParameter) else ()

    def info(kind: LayerKind, role: LayerRole, shape: tuple[int, int], suffix: str = "") -> LayerInfo:
        return LayerInfo(name + suffix, kind, role, shape, stored, tuple(n + suffix for n in names if n != name))

    if isinstance(parameter, UninitializedParameter):
        yield SkippedLayer(
            info(LayerKind.OTHER, LayerRole.OTHER, (0, 0)),
            LayerStatus.SKIPPED,
            "the parameter is not initialised yet: run one forward pass first",
        )
        return
    flat = (stored[0], parameter.numel() // max(stored[0], 1))
    if parameter.is_complex():
        yield SkippedLayer(
            info(LayerKind.OTHER, LayerRole.OTHER, flat),
            LayerStatus.SKIPPED,
            "complex weights are not measured",
        )
    elif isinstance(module, _CONV) and local == "weight":
        yield WeightLayer(info(LayerKind.CONV, LayerRole.CONV, flat), parameter)
    elif isinstance(module, _CONV_TRANSPOSE) and local == "weight":
        shape = (stored[1], parameter.numel() // stored[1])
        yield WeightLayer(info(LayerKind.CONV_TRANSPOSE, LayerRole.CONV, shape), parameter, "conv_transpose")
    elif isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        yield SkippedLayer(
            info(LayerKind.EMBEDDING, LayerRole.EMBEDDING, flat),
            LayerStatus.SKIPPED,
            "embedding look-up table: name it with --layers to measure it",
        )
    elif isinstance(module, nn.MultiheadAttention) and local == "in_proj_weight":
        block = stored[0] // 3
        for i, letter in enumerate(_QKV):
            yield WeightLayer(
                info(LayerKind.LINEAR, LayerRole.MATRIX, (block, stored[1]), f"[{letter}]"),
                parameter,
                rows=slice(i * block, (i + 1) * block),
            )
    elif type(module).__name__ == "Conv1D" and local == "weight" and len(stored) == 2:
        # Hugging Face's Conv1D is a linear layer that stores (in, out).
        yield WeightLayer(info(LayerKind.LINEAR, LayerRole.MATRIX, (stored[1], stored[0])), parameter, "transposed")
    elif len(stored) == 2:
        tied_to_table = any(isinstance(owner, nn.Embedding) for _, owner, _ in owners)
        role = LayerRole.UNEMBEDDING if tied_to_table else LayerRole.MATRIX
        kind = LayerKind.LINEAR if isinstance(module, nn.Linear) or tied_to_table else LayerKind.OTHER
        yield WeightLayer(info(kind, role, flat), parameter)
    else:
        yield SkippedLayer(
            info(LayerKind.OTHER, LayerRole.OTHER, flat),
            LayerStatus.SKIPPED,
            f"a {len(stored)}-D parameter of {type(module).__name__} has no single matrix view",
        )
