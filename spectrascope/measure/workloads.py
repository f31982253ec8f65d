"""The network of a run on the device and in the format that its options ask for; copied only if it has to change."""

from __future__ import annotations

from dataclasses import replace

import torch

from spectrascope.errors import DataError, OptionError
from spectrascope.losses import usual_loss
from spectrascope.measure.asked import DTYPES, device_name, device_named, require_sensible
from spectrascope.measure.placement import place
from spectrascope.network.effective import copy_of, parametrized_weights, unwrapped, with_effective_weights
from spectrascope.network.formats import apart_from_weights, in_format, is_spread
from spectrascope.network.guards import held_still, require_values, require_whole_weights
from spectrascope.numerics.lifted import is_below
from spectrascope.workload import Run, Workload

__all__ = ["prepare_workload"]


def prepare_workload(run: Run) -> Workload:
    """Unwrap the model, resolve device and dtype; copy the model only if it has to change and is not ours to change.

    Ours is one that nobody else holds, unless digits would be lost: a few weights are measured again with all of them.

    Raises:
        OptionError: an option is out of range, the device does not exist, or the dtype does not exist on it.
        DataError: there are no samples.
    """
    given, options = unwrapped(run.model), run.options
    require_whole_weights(given)
    require_values(given)
    first = next(given.parameters(), None)
    spread = options.device == "auto" and is_spread(given)
    if mapped := options.device_map != "none":
        _require_to_spread(run, first)
    device = first.device if spread and first is not None else device_named(options.device, first)
    at = torch.device("cpu") if mapped else None if spread else device
    require_sensible(options)
    dtype = DTYPES[options.dtype]
    if device.type == "mps" and dtype == torch.float64:
        raise OptionError("--dtype float64 does not exist on mps: use float32, or --device cpu")
    if run.source.n < 1:
        raise DataError("the dataset holds no samples")
    most = options.curvature_samples
    if most not in ("auto", "all") and int(most) < min(options.groups, run.source.n):
        raise OptionError(
            f"--curvature-samples {most}: expected at least one for each of the {options.groups} sample groups"
        )
    loss_fn = run.loss_fn or usual_loss(given, run.source.fetch_targets(0, 1))
    plain = with_effective_weights(given) if parametrized_weights(given) else given
    loses = any(is_below(dtype, p.dtype) for p in given.parameters() if p.is_floating_point())
    ours = plain is not given or (run.owned and not loses)
    model = in_format(plain, at, dtype, in_place=ours)
    workload = Workload(
        model, run.source, loss_fn, device, dtype, scores=run.scores, owned=run.owned or model is not given
    )
    if is_below(dtype, torch.float32) and not _runs(workload):
        model = in_format(plain, at, dtype, all_buffers=True, in_place=ours)
        workload = replace(workload, model=model, owned=run.owned or model is not given)
    if mapped:
        placed = place(workload.model if workload.owned else copy_of(workload.model), options.device_map)
        return replace(
            workload,
            model=placed.model,
            device=placed.device,
            owned=True,
            streamed=placed.streamed,
            places=placed.places,
        )
    return replace(workload, places=_places(given)) if spread else workload


def _require_to_spread(run: Run, first: torch.nn.Parameter | None) -> None:
    """Refuse what contradicts ``--device-map``.

    Raises:
        OptionError: says what to drop.
    """
    if run.options.device != "auto":
        raise OptionError("--device-map chooses the devices: drop --device")
    if first is not None and first.device.type != "cpu":
        raise OptionError(
            f"the network lies on {first.device} already and is measured where its weights lie: drop --device-map, or "
            "pass it in the host's memory"
        )


def _places(model: torch.nn.Module) -> str:
    """Where a network's weights lie, in words, in the order of the network."""
    return ", ".join(device_name(device) for device in dict.fromkeys(p.device for p in model.parameters()))


def _runs(workload: Workload) -> bool:
    """Whether the network takes its buffers in float32 beside weights in fewer digits, or has none of that kind."""
    if not any(True for _ in apart_from_weights(workload.model)):
        return True
    try:
        with held_still(workload, []), torch.no_grad():
            workload.forward(workload.fetch(0, 1)[0])
    except RuntimeError:
        return False
    return True
