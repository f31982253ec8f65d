"""``spectrascope.weights`` and ``inspect``: what can be said of a network without measuring its curvature."""

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
    open_network,
    read_tensors,
    refuse_opened,
    run_of_loaded,
)
from spectrascope.api.options import (
    Globs,
    RequestKeywords,
    of_data,
    of_measurement,
    opened,
    spelled_out,
)
from spectrascope.api.progress import Watch, watched
from spectrascope.api.results import InspectionResult, WeightsResult, open_report, shown
from spectrascope.api.spelling import in_python
from spectrascope.errors import DataError, LoadError, OptionError
from spectrascope.network.effective import unwrapped
from spectrascope.network.kept import fixed_source
from spectrascope.records.report import ModelInfo, ProbeOptions, Report
from spectrascope.records.values import Missing
from spectrascope.records.weights import ConvView, WeightOptions
from spectrascope.text import listed
from spectrascope.workload import LossFunction, SampleSource

__all__ = ["inspect", "weights"]


@in_python
def weights(
    model: Network,
    *,
    top_k: int = 20,
    min_rank: int = 1,
    layers: Globs = (),
    exclude: Globs = (),
    split_fused: bool = True,
    conv: ConvView | str = ConvView.FLAT,
    seed: int = 0,
    report: Report | str | os.PathLike[str] | None = None,
    on_progress: Watch = None,
    arch: str | None = None,
    base: str | os.PathLike[str] | None = None,
    num_classes: int | None = None,
    trust_remote_code: bool = False,
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
        seed: draws random weights, as of ``NAME@none``.
        report: a report of the same network, or where one is saved: its alpha_h goes beside ``s_weight``.
        on_progress: as for :func:`probe`.
        arch: of a network by name, and so is what follows: as for :func:`probe`.
        base: as for :func:`probe`.
        num_classes: as for :func:`probe`.
        trust_remote_code: as for :func:`probe`.

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
    named = {"arch": arch, "base": base, "num_classes": num_classes, "trust_remote_code": trust_remote_code}
    how = opened("weights", named)
    refuse_opened(how, model)
    with watched(on_progress) as watch:
        about: dict[str, Any] = {"beside": None if report is None else open_report(report), "on_progress": watch}
        if isinstance(model, nn.Module):
            about |= {"model_info": describe_model(unwrapped(model)), "command": _call("weights", type(model).__name__)}
            return shown(measure_network_weights(model, options, **about), WeightsResult)
        if isinstance(model, Mapping):
            tensors, why, called = _plain_tensors(model), "a state dict was passed", "state_dict"
            info = _of_state_dict(tensors)
        else:
            called = repr(str(model))
            try:
                network = open_network(model, seed=seed, how=how)
            except LoadError as error:
                found = None if "arch" in how else read_tensors(str(model), headers_only=False)
                if found is None:
                    raise
                why, (tensors, info) = str(error), found
            else:
                about |= {"model_info": network.info, "command": _call("weights", called)}
                return shown(measure_network_weights(network.model, options, **about), WeightsResult)
        about |= {"model_info": info, "command": _call("weights", called)}
        return shown(measure_tensors(tensors, why, options, **about), WeightsResult)


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


@in_python
@spelled_out
def inspect(
    model: Network,
    batches: object = None,
    loss_fn: LossFunction | str | None = None,
    **options: Unpack[RequestKeywords],
) -> InspectionResult:
    """Say what :func:`probe` would measure, with which engine and at what cost, without measuring.

    Args:
        model: as for :func:`probe`; of a checkpoint only names and shapes are read.
        batches: samples of the right shape, the first of which are looked at; as for :func:`probe`. ``None`` for a
            model by name takes noise of the shape the network says it reads; a network in memory is then listed
            without its cost.
        loss_fn: as for :func:`probe`.
        options: as for :func:`probe`.

    Returns:
        A :class:`spectrascope.records.inspection.Inspection` that shows itself, with ``to_frame()``.

    Raises:
        SpectrascopeError: one of its kinds, with a one-line message.
    """
    from spectrascope.measure.inspect import inspect_headers, inspect_model

    how = opened("inspect", options)
    refuse_opened(how, model)
    chosen = of_measurement(options)
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
        network, info, owned = unwrapped(model), describe_model(unwrapped(model)), False
    else:
        try:
            keeps = asked.dtype == "bfloat16"
            loaded = open_network(model, seed=asked.seed, headers_only=True, keep_bfloat16=keeps, how=how)
        except LoadError as error:
            tensors = None if "arch" in how or not is_named(model) else read_tensors(str(model), headers_only=True)
            if tensors is None:
                raise
            why, command = f"the network is not known: {error}", _call("inspect", repr(str(model)))
            seen = inspect_headers(tensors[0], why, options=asked, model_info=tensors[1], command=command)
            return shown(seen, InspectionResult)
        network, info, notes, owned = loaded.model, loaded.info, loaded.notes, loaded.owned
    if batches is not None and not is_named(batches):
        source = fixed_source(batches, None if isinstance(batches, SampleSource) else asked.num_samples)
        asked = replace(asked, num_samples=min(asked.num_samples, source.n))
    elif isinstance(model, nn.Module):
        if batches is not None:
            raise DataError(f"batches {str(batches)!r}: data by name goes with a network by name; pass tensors")
    else:
        few = of_data({**how, "balanced": False})
        named = None if loaded.workload is not None and batches is None else str(batches or "synthetic")
        try:
            run = run_of_loaded(loaded, replace(asked, num_samples=3), named, **few)
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
    found = inspect_model(
        network, source, loss_fn, which, options=asked, model_info=info, command=command, notes=notes, owned=owned
    )
    return shown(found, InspectionResult)
