"""Time this package's engines against plain double backprop: same weights, directions, samples; interleaved."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from spectrascope.curvature.choose import make_engine
from spectrascope.curvature.double_backprop import hessian_products, loss_gradients
from spectrascope.curvature.engine import Target
from spectrascope.curvature.microbatches import wait_for
from spectrascope.errors import OptionError
from spectrascope.measure.curvatures import measure_targets
from spectrascope.measure.prepare import device_name, prepare, require_wide
from spectrascope.measure.run import versions
from spectrascope.measure.stages import Measured
from spectrascope.records.bench import BenchReport
from spectrascope.records.signal import Estimate
from spectrascope.records.values import EngineName
from spectrascope.workload import FirstSamples, Run, StageClock, Workload, silent


def run_bench(run: Run, *, rounds: int = 3, products_per_layer: int = 2, reference_samples: int = 256) -> BenchReport:
    """Time the measuring stages of ``probe`` and the same by double backprop, alternating.

    All sides pay for the gradient and the directions. The reference is what a user would otherwise run: one
    Hessian-vector product per (weight, k), its graph built anew each time. A second one keeps one graph per
    micro-batch for all weights and products. Both are timed on ``products_per_layer`` products of every weight
    over ``reference_samples`` samples and scaled up to all products and samples. Medians over rounds. Whatever the
    options say, it is the published estimate that is timed, curvature on all samples and no null draws: what double
    backprop is asked for too, and what earlier releases timed.

    Returns:
        Times, their ratio per round, and the largest relative difference of h.

    Raises:
        SpectrascopeError: as :func:`spectrascope.measure.run.run_probe`.
    """
    if rounds < 1 or products_per_layer < 1 or reference_samples < 1:
        raise OptionError("--rounds, --products and --reference-samples must be at least 1")
    require_wide(run.options, "the differences between engines that bench tells")
    options = replace(run.options, estimate=Estimate.PUBLISHED, null_draws=0, curvature_samples="all")
    run, source = replace(run, options=options), run.source
    with prepare(replace(run, on_progress=silent)) as ready:
        workload = ready.workload
        reference = _Reference(workload, min(reference_samples, source.n), products_per_layer, options.seed)
        engine_times, reference_times, kept_times, forward_times = [], [], [], []
        micro_batch = 0
        found: Measured | None = None
        for i in range(rounds):
            run.on_progress("bench", 3 * i, 3 * rounds)
            micro_batch, seconds = _forward(workload, micro_batch)
            forward_times.append(seconds)
            run.on_progress("bench", 3 * i + 1, 3 * rounds)
            clock = StageClock()
            timed = replace(run, clock=clock, on_progress=silent)
            found = measure_targets(workload, ready.layers, ready.choices, timed)
            engine_times.append(sum(clock.seconds.values()))
            run.on_progress("bench", 3 * i + 2, 3 * rounds)
            shared = clock.seconds["gradient"] + clock.seconds["directions"]
            rebuilt, kept = reference.seconds(found.targets)
            reference_times.append(shared + rebuilt)
            kept_times.append(shared + kept)
        run.on_progress("bench", 3 * rounds, 3 * rounds)
        assert found is not None
        engine_of = {t.layer.name: c.engine for t, c in zip(found.targets, found.curvatures, strict=True)}
        difference = reference.difference(engine_of)
    forward = statistics.median(forward_times)
    engine = statistics.median(engine_times)
    slow = statistics.median(reference_times)
    kept = statistics.median(kept_times)
    n_products = sum(t.directions.k for t in found.targets)
    return BenchReport(
        model=run.model_info,
        data=run.data_info,
        versions=versions(),
        device=device_name(workload.device),
        dtype=str(workload.dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        engines=dict(Counter(c.engine.value for c in found.curvatures)),
        top_k=options.top_k,
        n_layers=len(found.targets),
        n_samples=source.n,
        n_samples_timed=reference.n,
        n_products=n_products,
        n_products_timed=reference.n_timed,
        extrapolated=reference.n < source.n or reference.n_timed < n_products,
        rounds=rounds,
        micro_batch=micro_batch,
        forward_seconds=forward,
        engine_seconds=engine,
        reference_seconds=slow,
        ratio=statistics.median(r / e for r, e in zip(reference_times, engine_times, strict=True)),
        ratio_rounds=tuple(r / e for r, e in zip(reference_times, engine_times, strict=True)),
        kept_graph_seconds=kept,
        kept_graph_ratio=statistics.median(k / e for k, e in zip(kept_times, engine_times, strict=True)),
        engine_forward_equivalents=engine / forward,
        reference_forward_equivalents=slow / forward,
        kept_graph_forward_equivalents=kept / forward,
        engine_per_product=engine / forward / n_products,
        reference_per_product=slow / forward / n_products,
        kept_graph_per_product=kept / forward / n_products,
        max_relative_difference=difference,
    )


def _forward(workload: Workload, micro_batch: int) -> tuple[int, float]:
    """Time one ``no_grad`` forward pass over all samples, at the fastest micro-batch found."""

    def timed(size: int, n: int) -> float:
        began = time.perf_counter()
        with torch.no_grad():
            for start in range(0, n, size):
                inputs, _ = workload.fetch(start, min(start + size, n))
                workload.forward(inputs)
        wait_for(workload.device)
        return time.perf_counter() - began

    n = workload.source.n
    if not micro_batch:
        sizes = [s for s in (16, 32, 64, 128, 256) if s <= n] or [n]
        sample = min(n, 256)
        timed(sizes[0], sample)
        micro_batch = min(sizes, key=lambda size: timed(size, sample))
    return micro_batch, timed(micro_batch, n)


class _Reference:
    """Times double backprop on a sample of the products, and keeps its values for comparison."""

    def __init__(self, workload: Workload, n: int, products: int, seed: int) -> None:
        self.workload = workload
        self.n = n
        self.products = products
        self.rng = np.random.default_rng(seed)
        self.n_timed = 0
        self.size = 0
        self.h: dict[str, tuple[list[int], torch.Tensor]] = {}
        self.targets: Sequence[Target] = ()

    def seconds(self, targets: Sequence[Target]) -> tuple[float, float]:
        """Time all products over all samples, graph rebuilt and graph kept, scaled up from this round's share."""
        self.targets = targets
        picks = [self._picks(t.directions.k) for t in targets]
        self.n_timed = sum(len(p) for p in picks)
        if not self.size:
            sizes = [s for s in (32, 64, 128) if s <= self.n] or [self.n]
            self._pass(targets[:1], [[0]], sizes[0], sizes[0])  # warm up
            self.size = min(sizes, key=lambda s: sum(self._pass(targets[:1], [[0]], s, max(s, min(self.n, 128)))[:2]))
        graph, products, values = self._pass(targets, picks, self.size, self.n)
        self.h = {t.layer.name: (p, v) for t, p, v in zip(targets, picks, values, strict=True)}
        scale = self.workload.source.n / self.n
        n_products = sum(t.directions.k for t in targets)
        rebuilt = sum(
            sum(self._pass([t], [[p[0]]], self.size, self.n)[:2]) * t.directions.k
            for t, p in zip(targets, picks, strict=True)
        )
        return rebuilt * scale, (graph + products * n_products / self.n_timed) * scale

    def _picks(self, k: int) -> list[int]:
        others = self.rng.permutation(np.arange(1, k))[: max(self.products - 1, 0)]
        return [0, *sorted(int(o) for o in others)]

    def _pass(
        self, targets: Sequence[Target], picks: Sequence[list[int]], size: int, n: int
    ) -> tuple[float, float, list[torch.Tensor]]:
        graph = products = 0.0
        values = [torch.zeros(len(p), dtype=torch.float64) for p in picks]
        for start in range(0, n, size):
            stop = min(start + size, n)
            inputs, labels = self.workload.fetch(start, stop)
            began = time.perf_counter()
            gradients = loss_gradients(self.workload, targets, inputs, labels)
            wait_for(self.workload.device)
            graph += time.perf_counter() - began
            for i, (target, gradient) in enumerate(zip(targets, gradients, strict=True)):
                began = time.perf_counter()
                found = hessian_products(target, gradient, picks[i])
                wait_for(self.workload.device)
                products += time.perf_counter() - began
                d = target.directions
                for j, (k, product) in enumerate(zip(picks[i], found, strict=True)):
                    matrix = target.layer.matrix(product).detach().cpu().double()
                    values[i][j] += d.left[:, k] @ matrix @ d.right[:, k] * (stop - start) / n
        return graph, products, values

    def difference(self, engine_of: dict[str, EngineName]) -> float:
        """Return the largest |h − h_reference| / max |h_reference of the weight|, on the reference's samples."""
        head = replace(self.workload, source=FirstSamples(self.workload.source, self.n))
        worst = 0.0
        for name in dict.fromkeys(engine_of.values()):
            group = [t for t in self.targets if engine_of[t.layer.name] is name]
            measured = make_engine(name).measure(head, group, groups=1) if group else []
            for target, curvature in zip(group, measured, strict=True):
                picks, truth = self.h[target.layer.name]
                error = (curvature.h[picks] - truth).abs().max() / truth.abs().max()
                worst = max(worst, float(error))
        return worst
