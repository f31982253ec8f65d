"""``spectrascope.probe`` and ``decompose``: what the commands measure, from Python."""

from __future__ import annotations

import os
from pathlib import Path

from torch import nn
from typing_extensions import Unpack

from spectrascope.api.inputs import (
    Network,
    make_run,
)
from spectrascope.api.options import RequestKeywords, spelled_out
from spectrascope.api.progress import Watch, watched
from spectrascope.api.results import ProbeReport, shown
from spectrascope.api.spelling import in_python
from spectrascope.errors import OptionError
from spectrascope.measure.division import WHOLE, Division
from spectrascope.measure.prepare import prepare
from spectrascope.measure.run import run_probe
from spectrascope.measure.run_folder import RunFolder
from spectrascope.records.decomposition import DecomposeOptions, FisherType, Sharing
from spectrascope.records.inspection import CostEstimate
from spectrascope.records.report import Report
from spectrascope.records.values import EngineName
from spectrascope.reports.json import report_to_json
from spectrascope.reports.write import write_text_atomically
from spectrascope.workload import FirstSamples, LossFunction, OnProgress, SampleSource, silent

__all__ = ["decompose", "foretell_cost", "kept_in", "kept_report", "list_engines", "probe"]


@in_python
@spelled_out
def probe(
    model: Network,
    batches: object = None,
    loss_fn: LossFunction | str | None = None,
    *,
    run: str | os.PathLike[str] | None = None,
    on_progress: Watch = None,
    **options: Unpack[RequestKeywords],
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
        run: a folder in which the run is kept as it goes: killed and called again, it goes on; ``report.json`` in it is
            the report.
        on_progress: called with (stage, done, total); ``done`` may be a fraction. ``None`` shows progress on stderr in
            a terminal or a notebook and logs the stages (``logging``, logger ``spectrascope``) elsewhere; ``False``
            says nothing.
        options: any of the following.
        num_samples: use at most this many samples; ``"all"``, or all when ``None``, but of data by name 2048.
        top_k: directions per weight.
        min_rank: first direction (1-based) of the fitted window.
        layers: a glob on parameter names to measure, or several; all when empty.
        exclude: a glob on parameter names to leave out, or several.
        engine: ``auto``, which is exact, or one for all weights: ``gauss-newton``, ``tangent`` or ``double-backprop``,
            exact where they can follow the network, and the estimates ``gauss-newton-sketch`` and
            ``finite-difference``.
        device: ``auto`` (where the model is, or CUDA if there is one), ``cpu``, ``cuda``, ``cuda:N``, ``mps``.
        device_map: ``auto`` spreads a network larger than a device: half of each GPU's free memory is filled in the
            order of the network, and what is left lies in the host's memory and is brought to the first GPU while it is
            read. Or module names and what each is on, a GPU's number or ``"cpu"``, as a dict or the path of a JSON
            file. A network that already lies on several devices is measured there without it.
        dtype: ``float32``, ``float64`` or ``bfloat16``, a word or torch's; the last is an approximation whose error is
            measured in the same run. ``None`` measures in float64 for a float64 model, else in float32.
        micro_batch: samples per pass, or ``auto``: the fastest by timing, which may differ from run to run and with it
            the last digits of the numbers. A number makes runs repeat to the last digit.
        memory: the most that the gradients of weights, and after them the tangents of a micro-batch, may take at a
            time, in bytes or as ``"8GiB"``, ``"500MB"``; less takes more passes. ``auto`` is half of what is free for
            gradients, and for tangents 1 GiB on a CPU and half of what is free on a device.
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
        across_weights: measure a step of all weights at once too: ``report.summary.across``.
        across_matrix: the same, and keep the whole matrix in it.
        arch: of a network by name, and so is what follows: the architecture of a checkpoint or state dict that is not
            recognised: a name, ``package.module:factory`` or ``file.py:factory``.
        base: network a PEFT adapter was trained on, if not the one it names.
        num_classes: number of the network's outputs.
        trust_remote_code: run Python code that comes with a Hugging Face model.
        data_root: of data by name, and so is what follows: the folder where dataset files are looked for, ``data`` when
            ``None``.
        download: download the dataset if it is not there.
        image_size: side of square inputs in pixels, if not the usual.
        resize: images' shorter side first, in pixels; of that the centre, ``image_size`` wide.
        mean: subtracted from images scaled to [0, 1]; one value, or one per channel.
        std: images are divided by it, after ``mean``.
        block_size: tokens per sample of text.
        balanced: as many samples of each class.
        skip_bad: leave unreadable samples out instead of failing.
        label_smoothing: of cross-entropy, as in training.

    Returns:
        A :class:`spectrascope.Report`: it shows itself in a notebook, ``to_frame()``, ``plot()``, ``save(path)``,
        ``report["layer1.0.conv1.weight"]``.

    Raises:
        SpectrascopeError: one of its kinds, with a one-line message.
    """
    with watched(on_progress) as watch:
        asked = make_run("probe", model, batches, loss_fn, watch, options)
        return shown(kept_report(run, run_probe(asked, kept_in(run))), ProbeReport)


@in_python
@spelled_out
def decompose(
    model: Network,
    batches: object = None,
    loss_fn: LossFunction | str | None = None,
    *,
    fisher: FisherType | str = FisherType.GGN,
    sharing: Sharing | str = Sharing.EXPAND,
    draws: int = 8,
    run: str | os.PathLike[str] | None = None,
    on_progress: Watch = None,
    **options: Unpack[RequestKeywords],
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
        run: as for :func:`probe`.
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
        asked = make_run("decompose", model, batches, loss_fn, watch, options)
        return shown(kept_report(run, run_decompose(asked, wanted, kept_in(run))), ProbeReport)


def list_engines(
    model: nn.Module,
    source: SampleSource,
    loss_fn: LossFunction | str | None,
    *,
    on_progress: OnProgress = silent,
    **options: Unpack[RequestKeywords],
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
    model: nn.Module, source: SampleSource, loss_fn: LossFunction | str | None, **options: Unpack[RequestKeywords]
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
        run.model,
        run.source,
        run.loss_fn,
        run.scores,
        options=run.options,
        model_info=run.model_info,
        timed=False,
        owned=run.owned,
    )
    return found.cost


def kept_in(run: str | os.PathLike[str] | None) -> Division:
    """Where a measurement is kept as it goes, by the folder that a Python caller names."""
    return WHOLE if run is None else Division(folder=RunFolder(Path(run)))


def kept_report(run: str | os.PathLike[str] | None, report: Report) -> Report:
    """The report, left in the folder of its run too."""
    if run is not None:
        write_text_atomically(Path(run) / "report.json", report_to_json(report) + "\n")
    return report
