"""Options of the functions that measure: their names, their defaults, and what is refused."""

from __future__ import annotations

import difflib
import inspect
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeAlias, TypedDict, TypeVar, get_type_hints

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from spectrascope.api.spelling import in_python
from spectrascope.errors import OptionError
from spectrascope.measure.asked import require_sensible
from spectrascope.records.report import ProbeOptions
from spectrascope.records.signal import Estimate, GradientSource, LabelSource
from spectrascope.records.values import ALL_SAMPLES, CheckScope, EngineName
from spectrascope.text import device_map_of, listed, memory_of

__all__ = [
    "DEFAULTS",
    "OPENED",
    "Globs",
    "NetworkKeywords",
    "ProbeKeywords",
    "RequestKeywords",
    "of_data",
    "of_measurement",
    "of_network",
    "opened",
    "require_options",
    "spelled_out",
    "with_kinds",
]

Globs: TypeAlias = str | Iterable[str]
"""One glob, or several."""


class ProbeKeywords(TypedDict, total=False):
    """What functions that measure take by keyword: the fields of ``ProbeOptions``, in looser types."""

    num_samples: int | str | None
    top_k: int
    min_rank: int
    layers: Globs
    exclude: Globs
    engine: EngineName | str
    device: str
    dtype: str | torch.dtype | None
    micro_batch: int | str
    seed: int
    groups: int
    self_check: CheckScope | str | bool
    split_fused: bool
    estimate: Estimate | str
    null_draws: int | str
    curvature_samples: int | str
    folds: int
    gradient: GradientSource | str
    labels: LabelSource | str
    across_weights: bool
    across_matrix: bool
    memory: int | str
    device_map: str | Mapping[str, int | str]
    momentum: Optimizer | Mapping[str, Tensor] | None
    scores: str | int | None


class NetworkKeywords(TypedDict, total=False):
    """How a network that is named is opened."""

    arch: str | None
    base: str | os.PathLike[str] | None
    num_classes: int | None
    trust_remote_code: bool


class SourceKeywords(NetworkKeywords, total=False):
    """How a network and data that are named are opened."""

    data_root: str | os.PathLike[str] | None
    download: bool
    image_size: int | None
    resize: int | None
    mean: float | Sequence[float] | None
    std: float | Sequence[float] | None
    block_size: int | None
    balanced: bool
    skip_bad: bool
    label_smoothing: float


class RequestKeywords(SourceKeywords, ProbeKeywords, total=False):
    """What functions that measure take by keyword: what is measured, and how what is named is opened."""


_HINTS = get_type_hints(RequestKeywords)
DEFAULTS = {item.name: item.default for item in fields(ProbeOptions) if item.name in _HINTS}
DEFAULTS |= {"dtype": None, "momentum": None, "scores": None}
OPENED: dict[str, Any] = dict.fromkeys(get_type_hints(SourceKeywords))
OPENED |= {"trust_remote_code": False, "download": False, "balanced": False, "skip_bad": False, "label_smoothing": 0.0}
"""Keywords that say how what is named is opened, with their defaults."""
_WHOLE = ("num_samples", "top_k", "min_rank", "seed", "groups", "folds")
Function = TypeVar("Function", bound=Callable[..., object])


def spelled_out(function: Function) -> Function:
    """Let ``help``, completion and ``inspect.signature`` see the keywords that ``**options`` stands for."""
    signature = inspect.signature(function)
    own = list(signature.parameters.values())[:-1]
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=_HINTS[name])
        for name, default in {**OPENED, **DEFAULTS}.items()
        if name not in signature.parameters
    ]
    function.__signature__ = signature.replace(parameters=[*own, *shared])  # type: ignore[attr-defined]
    return function


def opened(function: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """How what is named is opened: of the keywords given, those that say so and differ from their defaults.

    Raises:
        TypeError: the function takes no such keyword.
        OptionError: a value of the wrong kind.
    """
    for unknown in given.keys() - DEFAULTS.keys() - OPENED.keys():
        close = difflib.get_close_matches(unknown, ["on_progress", "run", *DEFAULTS, *OPENED], n=1)
        hint = f": did you mean {close[0]}?" if close else ""
        raise TypeError(f"{function}() got an unexpected keyword argument {unknown!r}{hint}")
    found = {name: given[name] for name in OPENED if name in given and given[name] != OPENED[name]}
    for name in ("mean", "std"):
        if name in found:
            try:
                values = [found[name]] if isinstance(found[name], (int, float)) else list(found[name])
                found[name] = tuple(float(value) for value in values)
            except (TypeError, ValueError):
                raise OptionError(
                    f"{name} {found[name]!r}: expected a number, or one per channel, as (0.49, 0.48, 0.45)"
                ) from None
    if not isinstance(found.get("arch", ""), str):
        raise OptionError(
            f"arch: expected a name, package.module:factory or file.py:factory, got {type(found['arch']).__name__}; a "
            "network in memory is passed itself, in the place of the model"
        )
    for name, kind in (("data_root", Path), ("base", str)):
        if name in found:
            found[name] = kind(found[name])
    return found


def of_data(how: Mapping[str, Any]) -> dict[str, Any]:
    """Those of :func:`opened` that say how data are opened."""
    return {name: value for name, value in how.items() if name not in NetworkKeywords.__annotations__}


def of_network(how: Mapping[str, Any]) -> dict[str, Any]:
    """Those of :func:`opened` that say how a network is opened."""
    return {name: value for name, value in how.items() if name in NetworkKeywords.__annotations__}


def of_measurement(given: Mapping[str, Any]) -> dict[str, Any]:
    """What is measured: the other keywords, all of them, in their kinds.

    Raises:
        OptionError: as :func:`with_kinds`.
    """
    return with_kinds({**DEFAULTS, **{name: value for name, value in given.items() if name in DEFAULTS}})


def with_kinds(chosen: dict[str, Any]) -> dict[str, Any]:
    """Turn words into members of their fixed lists, one glob into a list of one, an amount of memory into bytes.

    Raises:
        OptionError: a word that is not in its list, globs that are no strings, or no amount of memory.
    """
    if chosen["num_samples"] == "all":
        chosen["num_samples"] = ALL_SAMPLES
    for option in _WHOLE:
        value = chosen[option]
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            if option == "num_samples" and value is None:
                continue
            raise OptionError(f"{option} {value!r}: expected a whole number")
        chosen[option] = int(value)
    if chosen["num_samples"] is not None and chosen["num_samples"] < 1:
        raise OptionError(f"num_samples {chosen['num_samples']}: must be at least 1, or 'all'")
    if isinstance(chosen["dtype"], torch.dtype):
        chosen["dtype"] = str(chosen["dtype"]).removeprefix("torch.")
    try:
        chosen |= {option: listed(chosen[option], option) for option in ("layers", "exclude")}
    except TypeError as error:
        raise OptionError(str(error)) from None
    try:
        chosen["memory"] = memory_of(chosen["memory"])
    except ValueError as error:
        raise OptionError(f"memory {chosen['memory']!r}: {error}") from None
    if isinstance(chosen["device_map"], Mapping):
        chosen["device_map"] = json.dumps(dict(chosen["device_map"]))
    try:
        device_map_of(chosen["device_map"])
    except ValueError as error:
        raise OptionError(f"device_map {chosen['device_map']!r}: {error}") from None
    if isinstance(chosen["self_check"], bool):
        chosen["self_check"] = CheckScope.ALL if chosen["self_check"] else CheckScope.OFF
    for option, kind in (
        ("engine", EngineName),
        ("estimate", Estimate),
        ("labels", LabelSource),
        ("gradient", GradientSource),
        ("self_check", CheckScope),
    ):
        try:
            chosen[option] = kind(chosen[option])
        except ValueError as error:
            names = ", ".join(e.value for e in kind)
            raise OptionError(f"{option} {chosen[option]!r}: expected one of {names}") from error
    return chosen


@in_python
def require_options(options: Mapping[str, Any]) -> None:
    """Refuse options of :func:`spectrascope.probe` that are misspelt or out of range, before anything is measured.

    Args:
        options: keywords of :func:`spectrascope.probe`.

    Raises:
        OptionError: the first of them.

    >>> require_options({"topk": 3})
    Traceback (most recent call last):
    spectrascope.errors.OptionError: no option 'topk': did you mean top_k?
    """
    for unknown in options.keys() - DEFAULTS.keys():
        close = difflib.get_close_matches(unknown, DEFAULTS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"expected some of {', '.join(DEFAULTS)}"
        raise OptionError(f"no option {unknown!r}: {hint}")
    chosen = with_kinds({**DEFAULTS, **options})
    momentum, dtype, _ = chosen.pop("momentum"), chosen.pop("dtype"), chosen.pop("scores")
    if chosen["gradient"] is GradientSource.MOMENTUM and momentum is None:
        raise OptionError("gradient 'momentum': pass momentum=, the optimizer or its buffers by parameter name")
    try:
        require_sensible(ProbeOptions(**chosen, dtype=dtype or "float32"))
    except TypeError as error:
        raise OptionError(f"an option has a value of the wrong type: {error}") from error
