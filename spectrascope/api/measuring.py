"""``spectrascope.probe``, ``decompose``, ``weights`` and ``inspect``: what the commands measure, from Python."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from typing_extensions import Unpack

from spectrascope.api.inputs import (
    Network,
    describe_model,
    is_named,
    make_run,
    open_network,
    read_tensors,
    run_of_loaded,
)
from spectrascope.api.options import DEFAULTS, Globs, ProbeKeywords, spelled_out, with_kinds
from spectrascope.api.progress import Watch, watched
from spectrascope.api.results import InspectionResult, ProbeReport, WeightsResult, open_report, shown
from spectrascope.errors import DataError, LoadError, OptionError
from spectrascope.measure.prepare import prepare
from spectrascope.measure.run import run_probe
from spectrascope.network.effective import unwrapped
from spectrascope.network.kept import fixed_source
from spectrascope.records.decomposition import DecomposeOptions, FisherType, Sharing
from spectrascope.records.inspection import CostEstimate
from spectrascope.records.report import ModelInfo, ProbeOptions, Report
from spectrascope.records.values import EngineName, Missing
from spectrascope.records.weights import ConvView, WeightOptions
from spectrascope.text import listed
from spectrascope.workload import FirstSamples, LossFunction, OnProgress, SampleSource, silent

__all__ = ["decompose", "foretell_cost", "inspect", "list_engines", "probe", "weights"]


@spelled_out
def probe(
    model: Network,
    batches: object = None,
    loss_fn: LossFunction | str | None = None,
    *,
    arch: str | None = None,
    on_progress: Watch = None,
    **options: Unpack[ProbeKeywords],
) -> ProbeReport:
    """Measure how the loss curves along each weight's gradient singular directions.

    Args:
        model: any ``nn.Module``. It is left exactly as found (mode per module, gradients, hooks, buffers, random
            state) and copied first if it has to move to another device or dtype. Or whatever MODEL of the command
            line may be (a path, ``resnet50``, ``hf:org/name``, ``digits-cnn``), or a state dict, whose network is
            recognised from names and shapes.
        batches: an ``(inputs, targets)`` pair of tensors, a dict of tensors with ``labels`` (the rest is passed to
            the model by keyword), an iterable of either (a ``DataLoader``; read once, in its own order), or a
            :class:`spectrascope.workload.SampleSource`. Beside a model by name also DATA of the command line
            (``folder:PATH``, ``text:FILE``), or ``None`` for the data that the network implies.
        loss_fn: ``(output, targets) -> scalar``, or a name: ``cross-entropy``, ``bce``, ``mse``, ``causal-lm``,
            ``masked-lm``. When ``None``: the loss of a Hugging Face network's own, else softmax cross-entropy.
            torch's own losses are measured as they are on the whole batch: with class weights, labels that are
            ignored, more labels in some samples than in others, ``reduction="sum"``. A function of the user's own
            must be a mean over samples, and is held to it on all of them.
        arch: architecture of a checkpoint or state dict that is not recognised: a name, ``package.module:factory`` or
            ``file.py:factory``.
        on_progress: called with (stage, done, total); ``done`` may be a fraction. ``None`` shows progress on stderr in
            a terminal or a notebook and logs the stages (``logging``, logger ``spectrascope``) elsewhere; ``False``
            says nothing.
        options: any of the following.
        num_samples: use at most this many samples; all when ``None``, of data by name 2048.
        top_k: directions per weight.
        min_rank: first direction (1-based) of the fitted window.
        layers: a glob on parameter names to measure, or several; all when empty.
        exclude: a glob on parameter names to leave out, or several.
        engine: ``auto``, which is exact, or one for all weights: ``gauss-newton``, ``tangent`` or ``double-backprop``,
            exact where they can follow the network, and the estimates ``gauss-newton-sketch`` and
            ``finite-difference``.
        device: ``auto`` (where the model is, or CUDA if there is one), ``cpu``, ``cuda``, ``cuda:N``, ``mps``.
        dtype: ``float32`` or ``float64``; ``None`` measures in float64 for a float64 model, else in float32.
        micro_batch: samples per pass, or ``auto``: the fastest by timing, which may differ from run to run and with it
            the last digits of the numbers. A number makes runs repeat to the last digit.
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
        A :class:`spectrascope.Report`: it shows itself in a notebook, ``to_frame()``, ``plot()``, ``save(path)``,
        ``report["layer1.0.conv1.weight"]``.

    Raises:
        SpectrascopeError: one of its kinds, with a one-line message.
    """
    with watched(on_progress) as watch:
        return shown(run_probe(make_run("probe", model, batches, loss_fn, watch, options, arch=arch)), ProbeReport)


@spelled_out
def decompose(
    model: Network,
    batches: object = None,
    loss_fn: LossFunction | str | None = None,
    *,
    fisher: FisherType | str = FisherType.GGN,
    sharing: Sharing | str = Sharing.EXPAND,
    draws: int = 8,
    arch: str | None = None,
    on_progress: Watch = None,
    **options: Unpack[ProbeKeywords],
) -> ProbeReport:
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
        arch: as for :func:`probe`.
        on_progress: as for :func:`probe`.
        options: as for :func:`probe`: ``num_samples``, ``top_k``, ``layers``, ``engine``, ….

    Returns:
        A :class:`spectrascope.Report`; ``report.to_text(view="decomposition")`` and ``report.plot("decomposition")``
        say why.

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
    with watched(on_progress) as watch:
        run = make_run("decompose", model, batches, loss_fn, watch, options, arch=arch)
        return shown(run_decompose(run, wanted), ProbeReport)


def list_engines(
    model: nn.Module,
    source: SampleSource,
    loss_fn: LossFunction | str | None,
    *,
    on_progress: OnProgress = silent,
    **options: Unpack[ProbeKeywords],
) -> set[EngineName]:
    """Say which engines :func:`probe` would use, from a forward pass of a few samples.

    Args:
        model: as for :func:`probe`, and so are the others.
        source: the samples; the first of them are looked at.
        loss_fn: the mean loss, or its name.
        on_progress: called with (stage, done, total).
        options: any of :func:`probe`.

    Raises:
        SpectrascopeError: it cannot be measured.
    """
    few = FirstSamples(source, min(4, source.n))
    with prepare(make_run("probe", model, few, loss_fn, on_progress, {**options, "num_samples": None})) as ready:
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
    from spectrascope.measure.inspect import inspect_model

    run = make_run("probe", model, source, loss_fn, silent, options)
    found = inspect_model(
        run.model, run.source, run.loss_fn, run.scores, options=run.options, model_info=run.model_info, timed=False
    )
    return found.cost


def weights(
    model: Network,
    *,
    top_k: int = 20,
    min_rank: int = 1,
    layers: Globs = (),
    exclude: Globs = (),
    split_fused: bool = True,
    conv: ConvView | str = ConvView.FLAT,
    report: Report | str | os.PathLike[str] | None = None,
    on_progress: Watch = None,
) -> WeightsResult:
    """Fit power-law tails to the spectra of a network's weights; needs no data.

    Args:
        model: any ``nn.Module``, which is only read; a path or name as for :func:`probe`; or a state dict. The weights
            of a checkpoint or state dict of unknown architecture are told from names and shapes.
        top_k: last rank of the window in which ``s_weight`` is fitted.
        min_rank: first rank of that window, 1-based.
        layers: a glob on parameter names to measure, or several; all when empty.
        exclude: a glob on parameter names to leave out, or several.
        split_fused: measure the q, k and v of a fused weight as three rows, where its layout is known.
        conv: ``flat`` (outputs × (inputs · kernel)) or ``slices`` (WeightWatcher's pooled kernel positions).
        report: a report of the same network, or where one is saved: its alpha_h goes beside ``s_weight``.
        on_progress: as for :func:`probe`.

    Returns:
        A :class:`spectrascope.records.weights.WeightsReport` that shows itself, with ``to_frame()`` and ``save(path)``.

    Raises:
        SpectrascopeError: one of its kinds, with a one-line message.

    Cost: the eigenvalues of one Gram matrix per weight.
    """
    from spectrascope.measure.weights import measure_network_weights, measure_tensors

    try:
        view = ConvView(conv)
        chosen = listed(layers, "layers"), listed(exclude, "exclude")
    except ValueError as error:
        raise OptionError(f"conv {conv!r}: expected one of {', '.join(v.value for v in ConvView)}") from error
    except TypeError as error:
        raise OptionError(str(error)) from None
    options = WeightOptions(top_k, min_rank, *chosen, split_fused, view)
    with watched(on_progress) as watch:
        how: dict[str, Any] = {"beside": None if report is None else open_report(report), "on_progress": watch}
        if isinstance(model, nn.Module):
            how |= {"model_info": describe_model(unwrapped(model)), "command": _call("weights", type(model).__name__)}
            return shown(measure_network_weights(model, options, **how), WeightsResult)
        if isinstance(model, Mapping):
            tensors, why, called = _plain_tensors(model), "a state dict was passed", "state_dict"
            info = _of_state_dict(tensors)
        else:
            called = repr(str(model))
            try:
                network = open_network(model)
            except LoadError as error:
                found = read_tensors(str(model), headers_only=False)
                if found is None:
                    raise
                why, (tensors, info) = str(error), found
            else:
                how |= {"model_info": network.info, "command": _call("weights", called)}
                return shown(measure_network_weights(network.model, options, **how), WeightsResult)
        how |= {"model_info": info, "command": _call("weights", called)}
        return shown(measure_tensors(tensors, why, options, **how), WeightsResult)


def _call(name: str, called: str) -> str:
    return f"spectrascope.{name}({called})"


def _plain_tensors(content: Mapping[str, Any]) -> dict[str, Tensor]:
    wrong = next((name for name, value in content.items() if not isinstance(value, Tensor)), None)
    if wrong is not None:
        raise OptionError(
            f"model: expected a state dict (parameter name -> tensor), got a {type(content[wrong]).__name__} under "
            f"{wrong!r}; pass the dict of tensors inside"
        )
    return dict(content)


def _of_state_dict(tensors: Mapping[str, Tensor]) -> ModelInfo:
    return ModelInfo(
        id="state dict",
        architecture="unknown",
        source="python",
        path=Missing("the weights were passed in memory"),
        sha256=Missing("the weights were passed in memory"),
        weights="in memory",
        n_parameters=sum(t.numel() for t in tensors.values() if t.is_floating_point()),
    )


@spelled_out
def inspect(
    model: Network,
    batches: object = None,
    loss_fn: LossFunction | str | None = None,
    *,
    arch: str | None = None,
    **options: Unpack[ProbeKeywords],
) -> InspectionResult:
    """Say what :func:`probe` would measure, with which engine and at what cost, without measuring.

    Args:
        model: as for :func:`probe`; of a checkpoint only names and shapes are read.
        batches: samples of the right shape, the first of which are looked at; as for :func:`probe`. ``None`` for a
            model by name takes noise of the shape the network says it reads; a network in memory is then listed
            without its cost.
        loss_fn: as for :func:`probe`.
        arch: as for :func:`probe`.
        options: as for :func:`probe`.

    Returns:
        A :class:`spectrascope.records.inspection.Inspection` that shows itself, with ``to_frame()``.

    Raises:
        SpectrascopeError: one of its kinds, with a one-line message.
    """
    from spectrascope.measure.inspect import inspect_headers, inspect_model

    chosen = with_kinds({**DEFAULTS, **options})
    chosen.pop("momentum")
    scores = chosen.pop("scores")
    chosen |= {
        "dtype": chosen["dtype"] or "float32",
        "num_samples": chosen["num_samples"] or ProbeOptions().num_samples,
    }
    asked = ProbeOptions(**chosen)
    source: SampleSource | Missing = Missing("no samples were passed")
    notes: tuple[str, ...] = ()
    if isinstance(model, nn.Module):
        network, info = unwrapped(model), describe_model(unwrapped(model))
    else:
        try:
            loaded = open_network(model, arch=arch, seed=asked.seed, headers_only=True)
        except LoadError as error:
            tensors = None if arch is not None or not is_named(model) else read_tensors(str(model), headers_only=True)
            if tensors is None:
                raise
            why, command = f"the network is not known: {error}", _call("inspect", repr(str(model)))
            seen = inspect_headers(tensors[0], why, options=asked, model_info=tensors[1], command=command)
            return shown(seen, InspectionResult)
        network, info, notes = loaded.model, loaded.info, loaded.notes
    if batches is not None and not is_named(batches):
        source = fixed_source(batches, None if isinstance(batches, SampleSource) else asked.num_samples)
        asked = replace(asked, num_samples=min(asked.num_samples, source.n))
    elif isinstance(model, nn.Module):
        if batches is not None:
            raise DataError(f"batches {str(batches)!r}: data by name goes with a network by name; pass tensors")
    else:
        named = None if loaded.workload is not None and batches is None else str(batches or "synthetic")
        try:
            run = run_of_loaded(loaded, replace(asked, num_samples=3), named)
            source, loss_fn, notes = run.source, loss_fn or run.loss_fn, run.notes if batches is not None else notes
            scores = run.scores if scores is None else scores
        except DataError as error:
            if batches is not None:
                raise
            source = Missing(str(error))
    if isinstance(loss_fn, str):
        from spectrascope.losses import make_loss

        loss_fn = make_loss(loss_fn, task=info.task)
    called = type(model).__name__ if isinstance(model, nn.Module) else repr(info.id)
    which, command = None if scores is None else str(scores), _call("inspect", called)
    found = inspect_model(network, source, loss_fn, which, options=asked, model_info=info, command=command, notes=notes)
    return shown(found, InspectionResult)
