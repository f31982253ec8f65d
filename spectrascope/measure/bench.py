"""Time this package's engines against double backprop and other tools in one run: same weights, directions, samples."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch

from spectrascope.curvature.choose import plan_engines
from spectrascope.errors import OptionError
from spectrascope.measure.asked import device_name, require_wide
from spectrascope.measure.bench_sides import Clock, DoubleBackpropSide, EngineValues, PeerSide
from spectrascope.measure.curvatures import measure_targets
from spectrascope.measure.demand import count_direction_sets
from spectrascope.measure.peers import PEERS
from spectrascope.measure.prepare import Ready, prepare
from spectrascope.measure.run import versions
from spectrascope.measure.stages import Measured
from spectrascope.records.bench import BenchReport, PeerTimes
from spectrascope.records.report import ProbeOptions
from spectrascope.records.signal import Estimate
from spectrascope.workload import FirstSamples, Run, StageClock, Workload, silent

ROUND_PASSES = 2**16
"""Forward passes of one sample that a round may ask of the engines, and of double backprop, by their estimated cost."""

REFERENCE_WEIGHTS = 24
"""Weights, evenly over a network, that other sides than the engines are timed on."""

_FEWEST_SAMPLES = 32
_REBUILT, _KEPT = 8, 4
"""Forward passes that a product of double backprop costs, about, with a graph of its own and with one kept."""


def run_bench(
    run: Run, *, rounds: int = 3, products_per_layer: int = 2, reference_samples: int = 256, peers: bool = False
) -> BenchReport:
    """Time the measuring stages of ``probe`` and the same by double backprop and other tools, alternating.

    All sides pay for the gradient and the directions. The reference is what a user would otherwise run: one
    Hessian-vector product per (weight, k), its graph built anew each time. A second one keeps one graph per
    micro-batch for all weights and products. Both are timed on ``products_per_layer`` products of up to
    :data:`REFERENCE_WEIGHTS` weights over at most ``reference_samples`` samples and scaled up to all products and
    samples; other tools on the same weights, samples and micro-batch. Medians over rounds. Whatever the options say, it
    is the published estimate that is timed, curvature on all samples and no null draws: what double backprop is asked
    for too.

    A round takes at most about :data:`ROUND_PASSES` forward passes of one sample by the engines, and as many by each
    other side: of networks that need more, the first samples are timed, as many as that allows.

    Returns:
        Times, their ratio per round, and the largest relative difference of h.

    Raises:
        SpectrascopeError: as :func:`spectrascope.measure.run.run_probe`.
    """
    if rounds < 1 or products_per_layer < 1 or reference_samples < 1:
        raise OptionError("--rounds, --products and --reference-samples must be at least 1")
    require_wide(run.options, "the differences between engines that bench tells")
    options = replace(run.options, estimate=Estimate.PUBLISHED, null_draws=0, curvature_samples="all")
    run = replace(run, options=options)
    with prepare(replace(run, on_progress=silent)) as ready:
        n = _affordable(ready.workload, _passes(ready, options))
        workload = replace(ready.workload, source=FirstSamples(ready.workload.source, n))
        clock = Clock(workload.device)
        weights = min(len(ready.layers), REFERENCE_WEIGHTS)
        reference = DoubleBackpropSide(
            workload,
            min(reference_samples, _affordable(workload, weights * (_REBUILT + _KEPT * products_per_layer))),
            weights,
            products_per_layer,
            options.seed,
            clock,
        )
        others = [PeerSide(peer, reference) for peer in PEERS] if peers else []
        engine_times: list[float] = []
        reference_times: list[float] = []
        kept_times: list[float] = []
        forward_times: list[float] = []
        micro_batch = 0
        found: Measured | None = None
        sides = 3 + len(others)
        for i in range(rounds):
            run.on_progress("bench", sides * i, sides * rounds)
            micro_batch, seconds = _forward(workload, micro_batch, clock)
            forward_times.append(seconds)
            run.on_progress("bench", sides * i + 1, sides * rounds)
            stages = StageClock(now=clock.read)
            timed = replace(run, clock=stages, on_progress=silent)
            found = measure_targets(workload, ready.layers, ready.choices, timed)
            engine_times.append(sum(stages.seconds.values()))
            run.on_progress("bench", sides * i + 2, sides * rounds)
            shared = stages.seconds["gradient"] + stages.seconds["directions"]
            rebuilt, kept = reference.seconds(found.targets)
            reference_times.append(shared + rebuilt)
            kept_times.append(shared + kept)
            for j, other in enumerate(others, start=3):
                run.on_progress("bench", sides * i + j, sides * rounds)
                other.time(found.targets, shared)
        run.on_progress("bench", sides * rounds, sides * rounds)
        assert found is not None
        engine_of = {t.layer.name: c.engine for t, c in zip(found.targets, found.curvatures, strict=True)}
        values = EngineValues(workload, found.targets, engine_of)
        names = [target.layer.name for target in found.targets]
        pairs = zip(names, reference.picks, reference.values, strict=True)
        difference = values.difference(reference.n, ((name, p, v.tolist()) for name, p, v in pairs if p))
        forward = statistics.median(forward_times)
        n_products = sum(t.directions.k for t in found.targets)
        compare = partial(_times_of, values=values, engine=engine_times, forward=forward, n_products=n_products)
        peer_times = tuple(map(compare, others))
    engine = statistics.median(engine_times)
    slow = statistics.median(reference_times)
    kept = statistics.median(kept_times)
    return BenchReport(
        model=run.model_info,
        data=run.data_info,
        versions=versions(),
        device=device_name(workload.device),
        dtype=str(workload.dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        clock=clock.name,
        engines=dict(Counter(c.engine.value for c in found.curvatures)),
        top_k=options.top_k,
        n_layers=len(found.targets),
        n_layers_timed=sum(map(bool, reference.picks)),
        n_samples_asked=run.source.n,
        n_samples=n,
        n_samples_timed=reference.n,
        n_products=n_products,
        n_products_timed=reference.n_timed,
        extrapolated=reference.n < n or reference.n_timed < n_products,
        rounds=rounds,
        micro_batch=micro_batch,
        forward_seconds=forward,
        engine_seconds=engine,
        reference_seconds=slow,
        ratio=statistics.median(_ratios(reference_times, engine_times)),
        ratio_rounds=_ratios(reference_times, engine_times),
        kept_graph_seconds=kept,
        kept_graph_ratio=statistics.median(_ratios(kept_times, engine_times)),
        engine_forward_equivalents=engine / forward,
        reference_forward_equivalents=slow / forward,
        kept_graph_forward_equivalents=kept / forward,
        engine_per_product=engine / forward / n_products,
        reference_per_product=slow / forward / n_products,
        kept_graph_per_product=kept / forward / n_products,
        max_relative_difference=difference,
        peers=peer_times,
    )


def _passes(ready: Ready, options: ProbeOptions) -> float:
    """Forward passes that a sample costs by the engines, about."""
    plan = plan_engines(
        ready.workload,
        ready.layers,
        options.engine,
        options.top_k,
        lambda engine: count_direction_sets(engine, options),
    )
    return plan.gradient_passes + sum(plan.passes.values())


def _affordable(workload: Workload, passes: float) -> int:
    """How many samples a round may take that cost so many forward passes each."""
    return min(workload.source.n, max(int(ROUND_PASSES / passes), _FEWEST_SAMPLES))


def _ratios(times: Sequence[float], engine_times: Sequence[float]) -> tuple[float, ...]:
    return tuple(t / e for t, e in zip(times, engine_times, strict=True))


def _times_of(
    side: PeerSide, *, values: EngineValues, engine: Sequence[float], forward: float, n_products: int
) -> PeerTimes:
    if side.missing is not None:
        why = side.missing
        return PeerTimes(side.peer.name, side.peer.version(), side.peer.product, 0, 0, why, why, why, why, (), why)
    seconds = statistics.median(side.times)
    ratios = _ratios(side.times, engine)
    return PeerTimes(
        name=side.peer.name,
        version=side.peer.version(),
        product=side.peer.product,
        n_products_timed=side.n_timed,
        n_samples_timed=side.n,
        seconds=seconds,
        forward_equivalents=seconds / forward,
        per_product=seconds / forward / n_products,
        ratio=statistics.median(ratios),
        ratio_rounds=ratios,
        max_relative_difference=values.difference(side.n, ((name, *found) for name, found in side.h.items())),
    )


def _forward(workload: Workload, micro_batch: int, clock: Clock) -> tuple[int, float]:
    """Time one ``no_grad`` forward pass over all samples, at the fastest micro-batch found."""

    def passes(size: int, n: int) -> None:
        with torch.no_grad():
            for start in range(0, n, size):
                inputs, _ = workload.fetch(start, min(start + size, n))
                workload.forward(inputs)

    n = workload.source.n
    if not micro_batch:
        sizes = [s for s in (16, 32, 64, 128, 256) if s <= n] or [n]
        sample = min(n, 256)
        passes(sizes[0], sample)
        micro_batch = min(sizes, key=lambda size: clock(partial(passes, size, sample))[0])
    return micro_batch, clock(partial(passes, micro_batch, n))[0]
