"""``spectrascope.probe``, ``decompose`` and ``weights``: what the commands measure, on a model you already hold."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any, TypedDict, TypeVar, get_type_hints

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import Unpack

from spectrascope.errors import OptionError
from spectrascope.loading.checkpoints.momentum import momentum_of
from spectrascope.losses import make_loss, task_of
from spectrascope.measure.inspect import inspect_model
from spectrascope.measure.prepare import prepare, require_sensible
from spectrascope.measure.run import run_probe
from spectrascope.network.effective import unwrapped
from spectrascope.network.kept import fixed_source
from spectrascope.records.decomposition import DecomposeOptions, FisherType, Sharing
from spectrascope.records.inspection import CostEstimate
from spectrascope.records.report import DataInfo, ModelInfo, ProbeOptions, Report
from spectrascope.records.signal import Estimate, GradientSource, LabelSource
from spectrascope.records.values import CheckScope, EngineName, LossName, Missing
from spectrascope.records.weights import ConvView, WeightOptions, WeightsReport
from spectrascope.workload import (
    FirstSamples,
    LossFunction,
    OnProgress,
    Run,
    SampleSource,
    shape_of,
    silent,
)

__all__ = ["decompose", "describe_source", "list_engines", "probe", "require_options", "weights"]


class ProbeKeywords(TypedDict, total=False):
    """What :func:`probe` and :func:`decompose` take by keyword: the fields of ``ProbeOptions``, in looser types."""

    num_samples: int | None
    top_k: int
    min_rank: int
    layers: tuple[str, ...] | list[str]
    exclude: tuple[str, ...] | list[str]
    engine: EngineName | str
    device: str
    dtype: str | None
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
    momentum: Optimizer | Mapping[str, Tensor] | None
    scores: str | int | None


_HINTS = get_type_hints(ProbeKeywords)
_DEFAULTS = {item.name: item.default for item in fields(ProbeOptions) if item.name in _HINTS}
_DEFAULTS |= {"dtype": None, "momentum": None, "scores": None}
Function = TypeVar("Function", bound=Callable[..., Report])


def _spelled_out(function: Function) -> Function:
    """Let ``help``, completion and ``inspect.signature`` see the keywords that ``**options`` stands for."""
    own = list(inspect.signature(function).parameters.values())[:-1]
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=_HINTS[name])
        for name, default in _DEFAULTS.items()
    ]
    function.__signature__ = inspect.Signature([*own, *shared], return_annotation=Report)  # type: ignore[attr-defined]
    return function


@_spelled_out
def probe(
    model: nn.Module,
    batches: object,
    loss_fn: LossFunction | str | None = None,
    *,
    on_progress: OnProgress | None = None,
    **options: Unpack[ProbeKeywords],
) -> Report:
    """Measure how the loss curves along each weight's gradient singular directions.

    Args:
        model: any ``nn.Module``. It is left exactly as found (mode per module, gradients, hooks, buffers, random
            state) and copied first if it has to move to another device or dtype.
        batches: an ``(inputs, targets)`` pair of tensors, a dict of tensors with ``labels`` (the rest is passed to
            the model by keyword), an iterable of either (a ``DataLoader``; read once, in its own order), or a
            :class:`spectrascope.workload.SampleSource`.
        loss_fn: ``(output, targets) -> scalar``, or a name: ``cross-entropy``, ``bce``, ``mse``, ``causal-lm``,
            ``masked-lm``. When ``None``: the loss of a Hugging Face network's own, else softmax cross-entropy.
            torch's own losses are measured as they are on the whole batch: with class weights, labels that are
            ignored, more labels in some samples than in others, ``reduction="sum"``. A function of the user's own
            must be a mean over samples, and is held to it on all of them.
        on_progress: called with (stage, done, total); ``done`` may be a fraction.
        options: any of the following.
        num_samples: use at most this many samples; all when ``None``.
        top_k: directions per weight.
        min_rank: first direction (1-based) of the fitted window.
        layers: globs on parameter names to measure; all when empty.
        exclude: globs on parameter names to leave out.
        engine: ``auto``, which is exact, or one for all weights: ``gauss-newton``, ``tangent`` or ``double-backprop``,
            exact where they can follow the network, and the estimates ``gauss-newton-sketch`` and
            ``finite-difference``.
        device: ``auto`` (where the model is, or CUDA if there is one), ``cpu``, ``cuda``, ``cuda:N``, ``mps``.
        dtype: ``float32`` or ``float64``; ``None`` measures in float64 for a float64 model, else in float32.
        micro_batch: samples per pass, or ``auto``.
        seed: of whatever is drawn at random: the pairs the self-check compares, columns that stand for many.
        groups: sample groups of the jackknife.
        self_check: ``all`` compares every weight's engine with a reference, on two samples drawn anywhere in the batch,
            and a few weights in full; ``sampled`` these few alone; ``off`` (or ``False``) nothing.
        split_fused: measure the q, k and v of a fused weight as three rows, where its layout is known.
        estimate: ``both``, ``published`` (directions and curvature from the same samples) or ``held-out`` (curvature
            along directions that other samples chose).
        null_draws: draws of the gradient's sampling noise along whose directions curvature is measured too; ``auto``
            is 2 where they ride along, else 0.
        curvature_samples: samples for curvature, evenly over the groups; ``auto`` is at most 2048, or 512 for smooth
            networks, and ``all`` all of them. Slopes always take all samples.
        folds: parts of the batch that hold out one another.
        gradient: ``batch``, or ``momentum``: along the singular directions of an optimizer's momentum, of which a Muon
            step is really made.
        momentum: the optimizer, or its momentum by parameter name; it makes ``gradient`` ``momentum``.
        scores: name, or number, of the output that the loss compares, where the model returns several tensors; not
            needed for ``logits``. A loss function of your own gets all of them without.
        labels: ``data``, ``model`` (drawn from the model's own softmax: nothing is left but noise) or ``shuffled``.

    Returns:
        A :class:`spectrascope.records.report.Report`; ``spectrascope.reports`` turns it into JSON, CSV, tables.

    Raises:
        SpectrascopeError: one of its kinds, with a one-line message.
    """
    return run_probe(_run("probe", model, batches, loss_fn, on_progress, options))


@_spelled_out
def decompose(
    model: nn.Module,
    batches: object,
    loss_fn: LossFunction | str | None = None,
    *,
    fisher: FisherType | str = FisherType.GGN,
    sharing: Sharing | str = Sharing.EXPAND,
    draws: int = 8,
    on_progress: OnProgress | None = None,
    **options: Unpack[ProbeKeywords],
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
        on_progress: called with (stage, done, total); ``done`` may be a fraction.
        options: as for :func:`probe`: ``num_samples``, ``top_k``, ``layers``, ``engine``, ….

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
    except ValueError as error:
        names = "; ".join(", ".join(e.value for e in kind) for kind in (FisherType, Sharing))
        raise OptionError(f"{error}: expected fisher and sharing from: {names}") from error
    return run_decompose(_run("decompose", model, batches, loss_fn, on_progress, options), wanted)


def _run(
    name: str,
    model: nn.Module,
    batches: object,
    loss_fn: LossFunction | str | None,
    on_progress: OnProgress | None,
    given: ProbeKeywords,
) -> Run:
    """Settle what the caller left open: number of samples, dtype, loss, provenance."""
    for unknown in given.keys() - _DEFAULTS.keys():
        raise TypeError(f"{name}() got an unexpected keyword argument {unknown!r}")
    chosen = _with_kinds({**_DEFAULTS, **given})
    most = chosen["num_samples"]
    source = fixed_source(batches, most)
    data_info = describe_source(source)
    if most is not None and source.n > most:  # a source of the user's own
        source = FirstSamples(source, most)
        data_info = replace(describe_source(source), id=data_info.id, n_available=data_info.n)
    if chosen["dtype"] is None:
        double = any(p.dtype == torch.float64 for p in model.parameters())
        chosen["dtype"] = "float64" if double else "float32"
    chosen |= {"num_samples": source.n, "layers": tuple(chosen["layers"]), "exclude": tuple(chosen["exclude"])}
    model = unwrapped(model)
    if isinstance(loss_fn, str):
        loss_fn = None if loss_fn == LossName.AUTO.value else make_loss(loss_fn, task=task_of(model))
    momentum, scores = chosen.pop("momentum"), chosen.pop("scores")
    if isinstance(momentum, Optimizer):
        momentum = momentum_of(momentum, model)
    if momentum is not None:
        chosen["gradient"] = GradientSource.MOMENTUM
    elif chosen["gradient"] is GradientSource.MOMENTUM:
        raise OptionError("gradient 'momentum': pass momentum=, the optimizer or its buffers by parameter name")
    command = f"spectrascope.{name}({type(model).__name__})"
    return Run(
        model,
        source,
        loss_fn,
        ProbeOptions(**chosen),
        _describe_model(model),
        data_info,
        command=command,
        on_progress=on_progress or silent,
        momentum=momentum,
        scores=None if scores is None else str(scores),
    )


def _with_kinds(chosen: dict[str, Any]) -> dict[str, Any]:
    """Turn words into members of their fixed lists."""
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


def require_options(options: Mapping[str, Any]) -> None:
    """Refuse options of :func:`probe` that are misspelt or out of range, before there is anything to measure.

    Args:
        options: keywords of :func:`probe`.

    Raises:
        OptionError: the first of them.

    >>> require_options({"topk": 3})
    Traceback (most recent call last):
    spectrascope.errors.OptionError: no option 'topk': did you mean top_k?
    """
    for unknown in options.keys() - _DEFAULTS.keys():
        close = difflib.get_close_matches(unknown, _DEFAULTS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"expected some of {', '.join(_DEFAULTS)}"
        raise OptionError(f"no option {unknown!r}: {hint}")
    chosen = _with_kinds({**_DEFAULTS, **options})
    momentum, dtype, _ = chosen.pop("momentum"), chosen.pop("dtype"), chosen.pop("scores")
    if chosen["gradient"] is GradientSource.MOMENTUM and momentum is None:
        raise OptionError("gradient 'momentum': pass momentum=, the optimizer or its buffers by parameter name")
    try:
        require_sensible(ProbeOptions(**chosen, dtype=dtype or "float32"))
    except TypeError as error:
        raise OptionError(f"an option has a value of the wrong type: {error}") from error


def list_engines(
    model: nn.Module,
    source: SampleSource,
    loss_fn: LossFunction | str | None,
    *,
    on_progress: OnProgress | None = None,
    **options: Unpack[ProbeKeywords],
) -> set[EngineName]:
    """Say which engines :func:`probe` would use, from a forward pass of a few samples.

    Args:
        model: as for :func:`probe`, and so are the others.
        source: the samples; the first of them are looked at.
        loss_fn: the mean loss, or its name.
        on_progress: as for :func:`probe`.
        options: any of :func:`probe`.

    Raises:
        SpectrascopeError: it cannot be measured.
    """
    few = FirstSamples(source, min(4, source.n))
    with prepare(_run("probe", model, few, loss_fn, on_progress, {**options, "num_samples": None})) as ready:
        return {choice.engine for choice in ready.choices}


def foretell_cost(
    model: nn.Module, source: SampleSource, loss_fn: LossFunction | str | None, **options: Unpack[ProbeKeywords]
) -> CostEstimate:
    """Say roughly what :func:`probe` would cost, from shapes alone.

    Args:
        model: as for :func:`probe`, and so are the others.
        source: the samples; the shape of the first of them is looked at.
        loss_fn: the mean loss, or its name.
        options: any of :func:`probe`.

    Raises:
        SpectrascopeError: it cannot be measured.
    """
    run = _run("probe", model, source, loss_fn, None, options)
    return inspect_model(run.model, run.source, run.loss_fn, options=run.options, model_info=run.model_info).cost


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
    """Describe samples that come from the user's own code, as far as tensors tell."""
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
