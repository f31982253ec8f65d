"""Parameter groups of a network, from what ``spectrascope suggest-beta`` recommends."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from torch import nn

from spectrascope.records.advice import STEP_FORMULA, ParameterExponent
from spectrascope.text import listed, matches

__all__ = ["is_gain", "parameter_groups"]

Groups = list[dict[str, Any]]


def parameter_groups(
    model: nn.Module,
    exponents: str | Path | Mapping[str, Any] | Iterable[ParameterExponent] | None = None,
    *,
    adamw: str | Sequence[str] = (),
    scale_free: bool = True,
    default_beta: float | None = None,
    beta_grid: float | None = None,
) -> Groups:
    """Make the groups of a :class:`spectrascope.optim.SpectralNewton`.

    Args:
        model: the network, bare (not compiled or wrapped).
        exponents: a YAML file written by ``suggest-beta --emit yaml``, its content as a mapping, or
            ``advice.parameters``. Parameters it does not name go to AdamW. ``None``: every parameter of two or more
            dimensions takes the optimizer's own beta and damping, one of shape (e, m, n) that is no convolution's as e
            matrices; embedding tables, what is tied to one and gains of normalisations go to AdamW.
        adamw: a shell-style glob, or several, on parameter names that go to AdamW whatever else is said, heads above
            all.
        scale_free: which damping to take: relative to the gradient's size, or in its own units. Groups made from
            exponents carry the option, so that the two cannot be mixed up.
        default_beta: exponent of matrices that the exponents do not name, because no sample determined one: 1 is
            Muon's. They are parameters of two or more dimensions but for embedding tables, what is tied to one, what
            ``adamw`` matches and what the file gives to AdamW. ``None``: they go to AdamW, like all that is not named.
        beta_grid: round the exponents to multiples of this, from the first one on. 0.25 makes steps on a GPU some ten
            times as fast, and measured exponents are rarely known more finely. ``None``: exponents as measured.

    Returns:
        Groups with ``params``, ``beta`` and, where exponents are given, ``damping``, ``layout`` and ``scale_free``;
        the last group is AdamW's (``beta=None``). No group is empty.

    Raises:
        ValueError: the exponents name a parameter the network does not have, a glob matches nothing, the grid is not
            positive, or the file is not one of exponents.

    >>> model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    >>> [sorted(group) for group in parameter_groups(model, adamw=["2.*"])]
    [['params'], ['beta', 'params']]
    """
    parameters = dict(model.named_parameters())
    left_out = _matching(parameters, listed(adamw, "adamw"))
    tables = {id(p) for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag)) for p in m.parameters()}
    owners = [(m, p) for m in model.modules() for p in m._parameters.values() if p is not None]
    tables |= {id(p) for module, p in owners if is_gain(module, p)}
    stacks = {id(p) for module, p in owners if p.dim() == 3 and not isinstance(module, _CONVOLUTIONS)}
    if exponents is None:
        groups = _take_matrices(parameters, tables, left_out, stacks)
    else:
        document = _load(exponents)
        measured = [_rounded(e, beta_grid) for e in _read(document)]
        groups = _from_exponents(parameters, measured, left_out, scale_free)
        if default_beta is not None:
            if isinstance(document, Mapping):
                left_out |= {str(name) for name in document.get("adamw") or ()}
            damped = {"damping": _LEAST_DAMPING, "scale_free": True} if scale_free else {}
            rest = _take_matrices(parameters, tables, left_out, stacks)
            groups += [{**group, "beta": default_beta, **damped} for group in rest]
    groups.append({"params": list(parameters.values()), "beta": None})
    return [group for group in groups if group["params"]]


_LEAST_DAMPING = 1e-4  # relative: none for a training, as suggest-beta's least


def _rounded(exponent: ParameterExponent, grid: float | None) -> ParameterExponent:
    if grid is None:
        return exponent
    if not 0 < grid < math.inf:
        raise ValueError(f"beta_grid {grid}: expected a positive number such as 0.25, or None")
    return replace(exponent, beta=max(1, round(exponent.beta / grid)) * grid if exponent.beta > 0 else 0.0)


_CONVOLUTIONS = nn.modules.conv._ConvNd


def is_gain(module: nn.Module, parameter: nn.Parameter) -> bool:
    """Whether a parameter of a normalisation multiplies entry by entry, in however many dimensions it is stored."""
    if tuple(getattr(module, "normalized_shape", ())) == tuple(parameter.shape):
        return True
    return "norm" in type(module).__name__.lower() and sum(size > 1 for size in parameter.shape) < 2


def _take_matrices(
    parameters: dict[str, nn.Parameter], tables: set[int], left_out: set[str], stacks: set[int]
) -> Groups:
    """Take out the matrices and convolutions, and the stacks (e, m, n) of e matrices as a group of their own."""
    chosen = [name for name, p in parameters.items() if p.dim() >= 2 and id(p) not in tables and name not in left_out]
    taken = [parameters.pop(name) for name in chosen]
    groups: Groups = [{"params": [p for p in taken if id(p) not in stacks]}]
    if stacked := [p for p in taken if id(p) in stacks]:
        groups.append({"params": stacked, "layout": "stacked"})
    return groups


def _matching(names: Iterable[str], globs: Sequence[str]) -> set[str]:
    found: set[str] = set()
    names = list(names)
    for glob in globs:
        hits = [name for name in names if matches(glob, name)]
        if not hits:
            raise ValueError(f"adamw: {glob!r} matches none of the {len(names)} parameters, e.g. {names[0]!r}")
        found.update(hits)
    return found


def _from_exponents(
    parameters: dict[str, nn.Parameter], exponents: Sequence[ParameterExponent], left_out: set[str], scale_free: bool
) -> Groups:
    unknown = [e.name for e in exponents if e.name not in parameters]
    if unknown:
        raise ValueError(
            f"the network has no parameter {unknown[0]!r} ({len(unknown)} of {len(exponents)} exponents do not fit): "
            "pass the network they were measured on, bare and not compiled"
        )
    alike: dict[tuple[float, float, str], list[nn.Parameter]] = {}
    for e in exponents:
        if e.name not in left_out:
            damping = e.relative_damping if scale_free else e.damping
            alike.setdefault((e.beta, damping, e.layout), []).append(parameters.pop(e.name))
    return [
        {"params": found, "beta": beta, "damping": damping, "layout": layout, "scale_free": scale_free}
        for (beta, damping, layout), found in alike.items()
    ]


_FORMULA_OUTSIDE = "sigma / (sigma^beta + damping)"
"""What a file means that does not say."""

_Given: TypeAlias = "Mapping[str, Any] | Iterable[ParameterExponent]"


def _load(exponents: str | Path | _Given) -> _Given:
    """Read a file if it is one."""
    if not isinstance(exponents, (str, Path)):
        return exponents
    import yaml

    path = Path(exponents)
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())})") from error
    _from_document(document, str(path))  # so that a complaint names the file
    found: Mapping[str, Any] = document
    return found


def _read(exponents: _Given) -> list[ParameterExponent]:
    return _from_document(exponents, "exponents") if isinstance(exponents, Mapping) else list(exponents)


def _from_document(document: object, place: str) -> list[ParameterExponent]:
    entries = document.get("parameters") if isinstance(document, Mapping) else None
    if not isinstance(entries, Mapping):
        raise ValueError(f"{place}: expected what suggest-beta --emit yaml writes, found no table 'parameters'")
    formula = document.get("step", _FORMULA_OUTSIDE) if isinstance(document, Mapping) else None
    if formula not in (STEP_FORMULA, _FORMULA_OUTSIDE):
        raise ValueError(f"{place}: step {formula!r} is not known here, expected {STEP_FORMULA!r}")
    found = []
    for name, entry in entries.items():
        try:
            beta, absolute, relative = (float(entry[key]) for key in ("beta", "absolute_damping", "damping"))
            if formula == _FORMULA_OUTSIDE and beta > 0:  # the same directions are damped: sigma^beta below d
                absolute, relative = absolute ** (2 / beta), relative ** (2 / beta)
            found.append(ParameterExponent(str(name), beta, absolute, relative, str(entry.get("layout", "flat"))))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ValueError(
                f"{place}: parameter {name!r} needs numbers 'beta', 'damping' and 'absolute_damping', got {entry!r}"
            ) from error
    return found
