"""``spectrascope.probe``: the command's measurement on a model you already hold."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from spectrascope.errors import OptionError
from spectrascope.losses import make_loss, task_of
from spectrascope.measure.run import run_probe
from spectrascope.network.effective import unwrapped
from spectrascope.records.decomposition import DecomposeOptions, FisherType, Sharing
from spectrascope.records.report import DataInfo, ModelInfo, ProbeOptions, Report
from spectrascope.records.values import EngineName, Missing
from spectrascope.records.weights import ConvView, WeightOptions, WeightsReport
from spectrascope.workload import FirstSamples, LossFunction, SampleSource, shape_of, source_from_batches

__all__ = ["decompose", "describe_source", "probe", "weights"]


def probe(
    model: nn.Module,
    batches: object,
    loss_fn: LossFunction | str | None = None,
    *,
    num_samples: int | None = 2048,
    top_k: int = 20,
    min_rank: int = 1,
    layers: tuple[str, ...] | list[str] = (),
    exclude: tuple[str, ...] | list[str] = (),
    engine: EngineName | str = EngineName.AUTO,
    device: str = "auto",
    dtype: str | None = None,
    micro_batch: int | str = "auto",
    seed: int = 0,
    groups: int = 16,
    self_check: bool = True,
    split_fused: bool = True,
    on_progress: Callable[[str, float, int], None] | None = None,
) -> Report:
    """Measure how the loss curves along each weight's gradient singular directions.

    Args:
        model: any ``nn.Module``. It is left exactly as found (mode per module, gradients, hooks, buffers, random
            state) and copied first if it has to move to another device or dtype.
        batches: an ``(inputs, targets)`` pair of tensors, a dict of tensors with ``labels`` (the rest is passed to
            the model by keyword), an iterable of either (a ``DataLoader``; read once, in its own order), or a
            :class:`spectrascope.workload.SampleSource`.
        loss_fn: ``(output, targets) -> scalar``, the mean over samples, or a name: ``cross-entropy``, ``bce``,
            ``mse``, ``causal-lm``, ``masked-lm``. When ``None``: what a Hugging Face class name states, else
            softmax cross-entropy.
        num_samples: use at most this many samples; all when ``None``.
        top_k: directions per weight.
        min_rank: first direction (1-based) of the fitted window.
        layers: globs on parameter names to measure; all when empty.
        exclude: globs on parameter names to leave out.
        engine: ``auto`` (an exact one for every weight) or the name of one, as in ``EngineName``.
        device: ``auto`` (where the model is, or CUDA if there is one), ``cpu``, ``cuda``, ``cuda:N``, ``mps``.
        dtype: ``float32`` or ``float64``; ``None`` measures in float64 for a float64 model, else in float32.
        micro_batch: samples per pass, or ``auto``.
        seed: of the pairs the self-check draws.
        groups: sample groups of the jackknife.
        self_check: compare a few (weight, k) pairs with a reference; off saves a little time.
        split_fused: measure the q, k and v of a fused weight as three rows, where its layout is known.
        on_progress: called with (stage, done, total); ``done`` may be a fraction.

    Returns:
        A :class:`spectrascope.records.report.Report`; ``spectrascope.reports`` turns it into JSON, CSV, tables.

    Raises:
        SpectrascopeError: one of its kinds, with a one-line message.
    """
    try:
        chosen = EngineName(engine)
    except ValueError as error:
        names = ", ".join(e.value for e in EngineName)
        raise OptionError(f"engine {engine!r}: expected one of {names}") from error
    return _measure(
        run_probe, "probe", model, batches, loss_fn, num_samples, chosen, on_progress,
        top_k=top_k, min_rank=min_rank, layers=tuple(layers), exclude=tuple(exclude), device=device, dtype=dtype,
        micro_batch=micro_batch, seed=seed, groups=groups, self_check=self_check, split_fused=split_fused,
    )  # fmt: skip


def decompose(
    model: nn.Module,
    batches: object,
    loss_fn: LossFunction | str | None = None,
    *,
    fisher: FisherType | str = FisherType.GGN,
    sharing: Sharing | str = Sharing.EXPAND,
    draws: int = 8,
    num_samples: int | None = 2048,
    top_k: int = 20,
    min_rank: int = 1,
    layers: tuple[str, ...] | list[str] = (),
    exclude: tuple[str, ...] | list[str] = (),
    engine: EngineName | str = EngineName.AUTO,
    device: str = "auto",
    dtype: str | None = None,
    micro_batch: int | str = "auto",
    seed: int = 0,
    groups: int = 16,
    self_check: bool = True,
    split_fused: bool = True,
    on_progress: Callable[[str, float, int], None] | None = None,
) -> Report:
    """Measure as :func:`probe` does, and say why each weight's beta is what it is.

    The report's layers then hold a :class:`spectrascope.records.decomposition.Decomposition`: Kronecker factors,
    alignment ratios rho, chi, and slopes with beta = beta_lambda + beta_phi + beta_chi.

    Args:
        model: as for :func:`probe`, and so are all arguments not named here.
        batches: the samples.
        loss_fn: the mean loss, or its name.
        fisher: ``ggn`` (columns of the loss's curvature), ``mc`` (labels drawn from the model) or ``empirical`` (true
            labels).
        sharing: of a weight used at many positions: ``expand`` (each counts by itself) or ``reduce`` (summed first).
        draws: random columns per sample where exact ones cannot be had: several loss terms per sample, more than 128
            outputs, or ``mc``.
        num_samples: at most this many samples.
        top_k: directions per weight.
        min_rank: first direction of the window.
        layers: globs of names to measure.
        exclude: globs of names to leave out.
        engine: curvature engine.
        device: where to compute.
        dtype: ``float32``, ``float64`` or ``None``.
        micro_batch: samples per pass, or ``auto``.
        seed: of the self-check's pairs and of random columns.
        groups: sample groups of the jackknife.
        self_check: compare a few pairs with a reference.
        split_fused: q, k and v of a fused weight as three rows.
        on_progress: called with (stage, done, total); ``done`` may be a fraction.

    Returns:
        A :class:`spectrascope.records.report.Report`.

    Raises:
        SpectrascopeError: one of its kinds, with a one-line message.

    Cost: for weights whose tail is piecewise linear, about half as much again as a probe; for others, a forward and a
    backward pass per column on top of it.
    """
    from spectrascope.measure.decompose import run_decompose

    try:
        wanted = DecomposeOptions(FisherType(fisher), Sharing(sharing), draws)
        chosen = EngineName(engine)
    except ValueError as error:
        names = "; ".join(", ".join(e.value for e in kind) for kind in (FisherType, Sharing, EngineName))
        raise OptionError(f"{error}: expected fisher, sharing and engine from: {names}") from error
    return _measure(
        functools.partial(run_decompose, decompose=wanted), "decompose", model, batches, loss_fn, num_samples, chosen,
        on_progress, top_k=top_k, min_rank=min_rank, layers=tuple(layers), exclude=tuple(exclude), device=device,
        dtype=dtype, micro_batch=micro_batch, seed=seed, groups=groups, self_check=self_check, split_fused=split_fused,
    )  # fmt: skip


def _measure(
    run: Callable[..., Report],
    name: str,
    model: nn.Module,
    batches: object,
    loss_fn: LossFunction | str | None,
    num_samples: int | None,
    engine: EngineName,
    on_progress: Callable[[str, float, int], None] | None,
    *,
    dtype: str | None,
    **chosen: Any,
) -> Report:
    source = source_from_batches(batches, num_samples)
    data_info = describe_source(source)
    if num_samples is not None and source.n > num_samples:  # a source of the user's own
        source = FirstSamples(source, num_samples)
        data_info = replace(describe_source(source), id=data_info.id, n_available=data_info.n)
    if dtype is None:
        double = any(p.dtype == torch.float64 for p in model.parameters())
        dtype = "float64" if double else "float32"
    options = ProbeOptions(num_samples=source.n, engine=engine, dtype=dtype, **chosen)
    model = unwrapped(model)
    if isinstance(loss_fn, str):
        loss_fn = make_loss(loss_fn, task=task_of(model))
    extra: dict[str, Any] = {} if on_progress is None else {"on_progress": on_progress}
    return run(
        model,
        source,
        loss_fn,
        options=options,
        model_info=_describe_model(model),
        data_info=data_info,
        command=f"spectrascope.{name}({type(model).__name__})",
        **extra,
    )


def weights(
    model: nn.Module | Mapping[str, Tensor],
    *,
    top_k: int = 20,
    min_rank: int = 1,
    layers: tuple[str, ...] | list[str] = (),
    exclude: tuple[str, ...] | list[str] = (),
    split_fused: bool = True,
    conv: ConvView | str = ConvView.FLAT,
    report: Report | None = None,
) -> WeightsReport:
    """Fit power-law tails to the spectra of a network's weights; needs no data.

    Args:
        model: any ``nn.Module``, which is only read; or a state dict, whose weights are told from names and shapes.
        top_k: last rank of the window in which ``s_weight`` is fitted.
        min_rank: first rank of that window, 1-based.
        layers: globs on parameter names to measure; all when empty.
        exclude: globs on parameter names to leave out.
        split_fused: measure the q, k and v of a fused weight as three rows, where its layout is known.
        conv: ``flat`` (outputs × (inputs · kernel)) or ``slices`` (WeightWatcher's pooled kernel positions).
        report: a report of the same network, whose alpha_h goes beside ``s_weight``.

    Returns:
        A :class:`spectrascope.records.weights.WeightsReport`.

    Raises:
        SpectrascopeError: one of its kinds, with a one-line message.

    Cost: the eigenvalues of one Gram matrix per weight.
    """
    from spectrascope.measure.weights import measure_network_weights, measure_tensors

    try:
        view = ConvView(conv)
    except ValueError as error:
        raise OptionError(f"conv {conv!r}: expected one of {', '.join(v.value for v in ConvView)}") from error
    options = WeightOptions(top_k, min_rank, tuple(layers), tuple(exclude), split_fused, view)
    if isinstance(model, nn.Module):
        command = f"spectrascope.weights({type(model).__name__})"
        info = _describe_model(unwrapped(model))
        return measure_network_weights(model, options, model_info=info, command=command, beside=report)
    tensors = dict(model)
    info = ModelInfo(
        id="state dict",
        architecture="unknown",
        source="python",
        path=Missing("the weights were passed in memory"),
        sha256=Missing("the weights were passed in memory"),
        weights="in memory",
        n_parameters=sum(t.numel() for t in tensors.values() if t.is_floating_point()),
    )
    why = "a state dict was passed"
    return measure_tensors(
        tensors, why, options, model_info=info, command="spectrascope.weights(state_dict)", beside=report
    )


def _describe_model(model: nn.Module) -> ModelInfo:
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
    """What can be told of samples that come from the user's own code."""
    inputs, targets = source.fetch(0, 1)
    labels: int | Missing = Missing("targets are not class labels")
    if _is_label(targets):
        labels = 1 + max(
            int(source.fetch(start, min(start + 1024, source.n))[1].max()) for start in range(0, source.n, 1024)
        )
    where = inspect.getmodule(type(source))
    return DataInfo(
        id="tensors" if where is not None and where.__name__ == "spectrascope.workload" else type(source).__name__,
        n=source.n,
        n_available=Missing("the samples were passed in memory"),
        digest=source.digest(),
        input_shape=shape_of(inputs),
        n_classes=labels,
        preprocessing="as passed",
        label_order="as passed",
        synthetic=False,
    )


def _is_label(targets: Tensor) -> bool:
    return targets.dim() == 1 and not targets.is_floating_point()
