"""Fit power-law tails to the spectra of a network's weights: no data, no gradients."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone

import numpy as np
import torch
from torch import Tensor, nn

from spectrascope.errors import OptionError
from spectrascope.measure.inspect import inspect_headers
from spectrascope.measure.run import versions
from spectrascope.network.effective import effective_tensors, parametrized_weights, unwrapped, with_effective_weights
from spectrascope.network.guards import require_values, require_whole_tensor, require_whole_weights
from spectrascope.network.layers import WeightLayer, find_layers
from spectrascope.numerics.fits import fit_alpha_g
from spectrascope.numerics.rank_models import compare_rank_models
from spectrascope.numerics.spectra import gram_eigenvalues
from spectrascope.numerics.tails import fit_tail
from spectrascope.records.report import (
    NOT_SELECTED,
    LayerInfo,
    LayerReport,
    ModelInfo,
    ProbeOptions,
    Report,
    SkippedLayer,
)
from spectrascope.records.values import Interval, LayerKind, LayerStatus, Missing, PowerFit
from spectrascope.records.weights import (
    ConvView,
    TailFit,
    TailRow,
    WeightOptions,
    WeightsReport,
    WeightSummary,
    WeightTail,
)
from spectrascope.text import matches
from spectrascope.workload import OnProgress, silent

Item = tuple[LayerInfo, Tensor] | SkippedLayer
"""A weight with its tensor, outputs × … , or why it is left out."""

_NO_ALPHA_H = Missing("no report of this network's curvature was given")
_TRUSTED = 1e-3  # largest error of an eigenvalue of the tail, relative


def measure_network_weights(
    model: nn.Module,
    options: WeightOptions,
    *,
    model_info: ModelInfo,
    command: str = "",
    beside: Report | None = None,
    on_progress: OnProgress = silent,
) -> WeightsReport:
    """Measure the tail of every weight of a network; the model is only read.

    Args:
        model: any module with its weights in memory.
        options: which weights, seen how, over which window.
        model_info: provenance of the model.
        command: the command line, for the record.
        beside: a report of the same network, whose alpha_h goes beside s_weight.
        on_progress: called with (stage, done, total).

    Raises:
        OptionError: a glob matches no weight, or the options contradict each other.
        UnsupportedModelError: the model holds quantized weights.
    """
    model = unwrapped(model)
    require_whole_weights(model)
    require_values(model)
    if parametrized_weights(model):
        model = with_effective_weights(model)
    rows = find_layers(model, options.layers, options.exclude, split_fused=options.split_fused)
    items: list[Item] = [_item_of(row) if isinstance(row, WeightLayer) else row for row in rows]
    return _report(items, options, "network", model_info, command, beside, (), on_progress)


def measure_tensors(
    tensors: Mapping[str, Tensor],
    why: str,
    options: WeightOptions,
    *,
    model_info: ModelInfo,
    command: str = "",
    beside: Report | None = None,
    on_progress: OnProgress = silent,
) -> WeightsReport:
    """Measure the tails of a checkpoint's tensors, the network they belong to not being known.

    Kinds and roles are read off names and shapes. No singular value depends on whether a matrix is transposed.

    Args:
        tensors: name to tensor.
        why: why there is no network, for the record.
        options: which weights, seen how, over which window; fused weights are not split.
        model_info: provenance of the file.
        command: the command line, for the record.
        beside: a report of the same network, whose alpha_h goes beside s_weight.
        on_progress: called with (stage, done, total).

    Raises:
        OptionError: no tensor could be a weight, or a glob matches none.
    """
    for name, tensor in tensors.items():
        require_whole_tensor(name, tensor)
    tensors = effective_tensors(tensors)
    headers = inspect_headers(dict(tensors), why, options=ProbeOptions(), model_info=model_info)
    items: list[Item] = []
    names = [row.info.name for row in headers.weights if len(row.info.stored_shape) > 1]
    for option, globs in (("--layers", options.layers), ("--exclude", options.exclude)):
        for glob in globs:
            if not any(matches(glob, name) for name in names):
                raise OptionError(f"{option} {glob!r} matches none of the {len(names)} weights, e.g. {names[0]!r}")
    for row in headers.weights:
        name = row.info.name
        if len(row.info.stored_shape) < 2:
            continue
        named = any(matches(glob, name) for glob in options.layers)
        left_out = any(matches(glob, name) for glob in options.exclude)
        if left_out or (options.layers and not named):
            reason = "excluded by --exclude" if left_out else NOT_SELECTED
            items.append(SkippedLayer(row.info, LayerStatus.SKIPPED, reason))
        elif row.measured or named:
            base, expert = re.fullmatch(r"(.*?)(?:\[(\d+)\])?", name, re.S).groups()  # type: ignore[union-attr]
            items.append((row.info, tensors[base] if expert is None else tensors[base][int(expert)]))
        else:
            items.append(SkippedLayer(row.info, LayerStatus.SKIPPED, row.reason))
    notes = (f"weights were told from names and shapes, without the network: {why}",)
    return _report(items, options, "names", model_info, command, beside, notes, on_progress)


def _item_of(layer: WeightLayer) -> Item:
    if layer.info.kind is LayerKind.CONV and layer.rows is None:
        return layer.info, layer.parameter.detach()
    return layer.info, layer.matrix(layer.parameter.detach())


def measure_weight(
    info: LayerInfo, tensor: Tensor, options: WeightOptions, alpha_h: PowerFit | Missing = _NO_ALPHA_H
) -> WeightTail | SkippedLayer:
    """Measure one weight.

    Args:
        info: what it is.
        tensor: (outputs, …), finite.
        options: how it is seen, and the window.
        alpha_h: its curvature decay, where known.

    Returns:
        Its spectrum in numbers; or a failed row, if the tensor is zero or not finite.

    Cost: the eigenvalues of one Gram matrix of min(m, n), in float32 where that is accurate enough for the tail.
    """
    # NaN and infinity pass through both, without a mask as large as the weight.
    if tensor.numel() and not math.isfinite(float(tensor.abs().max())):
        return SkippedLayer(info, LayerStatus.FAILED, "the weight holds NaN or infinity")
    eigenvalues, shape = _eigenvalues(tensor, options, precise=False)
    largest = float(eigenvalues[0]) if eigenvalues.size else 0.0
    if largest == 0.0:
        return SkippedLayer(info, LayerStatus.FAILED, "the weight is exactly zero: it has no spectrum")
    cut = (max(shape) * torch.finfo(torch.float32).eps) ** 2 * largest
    sigma = np.sqrt(eigenvalues)
    # Values past the numerical rank are rounding of the weight itself.
    rank = int((eigenvalues > cut).sum())
    tail = fit_tail(eigenvalues[:rank], _resolution(tensor))
    last = min(options.top_k, rank)
    first = options.min_rank
    window = sigma[first - 1 : last]
    norm = float(eigenvalues.sum())
    return WeightTail(
        info=info,
        sigma=tuple(float(value) for value in sigma[: options.top_k]),
        window=(first, max(last, first - 1)),
        Q=max(shape) / min(shape),
        num_evals=eigenvalues.size,
        matrix_rank=rank,
        norm=norm,
        spectral_norm=largest,
        sv_max=float(sigma[0]),
        stable_rank=norm / largest,
        tail=tail,
        alpha_weighted=tail if isinstance(tail, Missing) else tail.alpha * float(np.log10(largest)),
        s_weight=fit_alpha_g(window, first),
        rank_models=compare_rank_models(window, first),
        alpha_h=alpha_h,
    )


def _eigenvalues(tensor: Tensor, options: WeightOptions, *, precise: bool) -> tuple[np.ndarray, tuple[int, int]]:
    """Of all matrices the weight is seen as, decreasing; and the shape of one."""
    matrices = list(_matrices(tensor, options.conv))
    found = [gram_eigenvalues(matrix, precise=precise) for matrix in matrices]
    values = torch.cat([values for values, _ in found]).sort(descending=True).values.numpy()
    shape = (int(matrices[0].shape[0]), int(matrices[0].shape[1]))
    if not precise:
        tail = fit_tail(values, _resolution(tensor))
        error = max(error for _, error in found)
        # Without a tail: whether eigenvalues are equal is for the weight's own rounding to say.
        if isinstance(tail, Missing) or error > _TRUSTED * min(tail.xmin, tail.xmax - tail.xmin):
            return _eigenvalues(tensor, options, precise=True)
    return values, shape


def _resolution(tensor: Tensor) -> float:
    """Relative difference that rounding alone makes between equal eigenvalues of a weight.

    The precision is that of the values, not of their dtype: a bfloat16 checkpoint in float32 has bfloat16's. There it
    is storing that rounds (1.2 epsilons seen, at every size); float32 weights were computed in it (34 seen, of
    orthogonal initialisation at 1 500).
    """
    for dtype in (torch.bfloat16, torch.float16):
        if torch.equal(tensor.to(dtype).to(tensor.dtype), tensor):
            return 2 * torch.finfo(dtype).eps
    single = torch.equal(tensor.to(torch.float32).to(tensor.dtype), tensor)
    return 64 * torch.finfo(torch.float32 if single else torch.float64).eps


def _matrices(tensor: Tensor, conv: ConvView) -> Iterator[Tensor]:
    if tensor.dim() > 2 and conv is ConvView.SLICES:
        for piece in tensor.flatten(2).unbind(2):
            yield piece / 2**0.5  # as WeightWatcher scales them
    else:
        yield tensor.flatten(1)


def _report(
    items: Sequence[Item],
    options: WeightOptions,
    view: str,
    model_info: ModelInfo,
    command: str,
    beside: Report | None,
    notes: tuple[str, ...],
    on_progress: OnProgress,
) -> WeightsReport:
    if options.top_k < 1 or not 1 <= options.min_rank <= options.top_k:
        raise OptionError(f"--min-rank {options.min_rank} must lie between 1 and --top-k {options.top_k}")
    if not any(not isinstance(item, SkippedLayer) for item in items):
        raise OptionError("every weight is left out: nothing to measure; see --layers and --exclude")
    began = time.perf_counter()
    measured = _alphas_h(beside)
    rows: list[TailRow] = []
    for done, item in enumerate(items):
        on_progress("weights", done, len(items))
        if isinstance(item, SkippedLayer):
            rows.append(item)
            continue
        info, tensor = item
        alpha_h = _NO_ALPHA_H if beside is None else measured.get(info.name, Missing("not measured in the report"))
        rows.append(measure_weight(info, tensor, options, alpha_h))
    on_progress("weights", len(items), len(items))
    if beside is not None and not measured.keys() & {row.info.name for row in rows}:
        raise OptionError("--report is of another network: none of its weights has the name of one of these")
    return WeightsReport(
        model=model_info,
        versions=versions(),
        command=command,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        options=options,
        view=view,
        rows=tuple(rows),
        summary=_summarise(rows),
        seconds=time.perf_counter() - began,
        notes=notes,
    )


def _alphas_h(report: Report | None) -> dict[str, PowerFit | Missing]:
    rows = report.layers if report is not None else ()
    return {row.info.name: row.analysis.alpha_h for row in rows if isinstance(row, LayerReport)}


def _summarise(rows: Sequence[TailRow]) -> WeightSummary:
    tails = [row for row in rows if isinstance(row, WeightTail)]
    alphas = [row.tail.alpha for row in tails if isinstance(row.tail, TailFit)]
    slopes = [row.s_weight.value for row in tails if isinstance(row.s_weight, PowerFit)]
    pairs = [
        (row.s_weight.value, row.alpha_h.value)
        for row in tails
        if isinstance(row.s_weight, PowerFit) and isinstance(row.alpha_h, PowerFit)
    ]
    nothing = Missing("no weight has a power-law tail")
    low, high = np.quantile(alphas, [0.25, 0.75]) if alphas else (0.0, 0.0)
    return WeightSummary(
        n_ok=len(tails),
        n_skipped=sum(row.status is LayerStatus.SKIPPED for row in rows),
        n_failed=sum(row.status is LayerStatus.FAILED for row in rows),
        alpha_median=float(np.median(alphas)) if alphas else nothing,
        alpha_quartiles=Interval(float(low), float(high)) if alphas else nothing,
        s_weight_median=float(np.median(slopes)) if slopes else Missing("no weight has a rank-decay slope"),
        n_below_2=sum(alpha < 2 for alpha in alphas),
        n_above_6=sum(alpha > 6 for alpha in alphas),
        n_compared=len(pairs),
        n_s_weight_below=sum(slope < alpha_h for slope, alpha_h in pairs),
    )
