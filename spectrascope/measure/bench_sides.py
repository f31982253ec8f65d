"""What a benchmark times this package against: double backprop, and other tools' products of the same weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spectrascope.curvature.choose import make_engine
from spectrascope.curvature.double_backprop import hessian_products, loss_gradients
from spectrascope.curvature.engine import Target
from spectrascope.curvature.microbatches import wait_for
from spectrascope.measure.peers import Peer, Problem, failed
from spectrascope.records.values import EngineName, Missing
from spectrascope.workload import FirstSamples, Workload

__all__ = ["Clock", "DoubleBackpropSide", "EngineValues", "PeerSide"]


@dataclass(frozen=True)
class Clock:
    """Seconds of work: of the processor, all threads together, or of the wall where a device does it."""

    device: torch.device

    @property
    def name(self) -> str:
        """What it reads, in words."""
        return "processor time" if self.device.type == "cpu" else "wall time"

    @property
    def read(self) -> Callable[[], float]:
        """Its reading; a shared machine's other work is not in a process's own time."""
        return time.process_time if self.device.type == "cpu" else time.perf_counter

    def __call__(self, work: Callable[[], Any]) -> tuple[float, Any]:
        """Seconds that ``work`` takes, and what it returns."""
        began = self.read()
        found = work()
        wait_for(self.device)
        return self.read() - began, found


@dataclass
class DoubleBackpropSide:
    """Times double backprop on a sample of the products, and keeps its values for comparison.

    Args:
        workload: the network and all samples.
        n: how many samples it is timed on, cut to whole micro-batches.
        weights: how many weights it is timed on, evenly over those there are.
        products: how many directions of each.
        seed: chooses the directions.
    """

    workload: Workload
    n: int
    weights: int
    products: int
    seed: int
    clock: Clock
    n_timed: int = field(default=0, init=False)
    size: int = field(default=0, init=False)
    picks: list[list[int]] = field(default_factory=list, init=False)
    values: list[Tensor] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)

    def seconds(self, targets: Sequence[Target]) -> tuple[float, float]:
        """Time all products over all samples, graph rebuilt and graph kept, scaled up from this round's share."""
        timed = {round(i) for i in np.linspace(0, len(targets) - 1, min(self.weights, len(targets)))}
        self.picks = [self._picks(t.directions.k) if i in timed else [] for i, t in enumerate(targets)]
        self.n_timed = sum(map(len, self.picks))
        if not self.size:
            self._tune(targets)
        graph, products, self.values = self._pass(targets, self.picks, self.n)
        each = {}
        for i in sorted(timed):
            each[i] = sum(self._pass([targets[i]], [self.picks[i][:1]], self.n)[:2])
        per_sample = self.workload.source.n / self.n
        kept = graph + products * sum(t.directions.k for t in targets) / self.n_timed
        return scaled_to_all(targets, each) * per_sample, kept * per_sample

    def _tune(self, targets: Sequence[Target]) -> None:
        sizes = [s for s in (32, 64, 128) if s <= self.n] or [self.n]
        times = {}
        for self.size in (sizes[0], *sizes):  # the first time warms up
            n = max(self.size, min(self.n, 128))
            times[self.size] = sum(self._pass(targets[:1], [[0]], n)[:2]) / n
        self.size = min(times, key=lambda size: times[size])
        self.n -= self.n % self.size

    def _picks(self, k: int) -> list[int]:
        others = self._rng.permutation(np.arange(1, k))[: max(self.products - 1, 0)]
        return [0, *sorted(int(o) for o in others)]

    def _pass(
        self, targets: Sequence[Target], picks: Sequence[list[int]], n: int
    ) -> tuple[float, float, list[torch.Tensor]]:
        graph = products = 0.0
        values = [torch.zeros(len(p), dtype=torch.float64) for p in picks]
        for start in range(0, n, self.size):
            stop = min(start + self.size, n)
            inputs, labels = self.workload.fetch(start, stop)
            seconds, gradients = self.clock(partial(loss_gradients, self.workload, targets, inputs, labels))
            graph += seconds
            for i, (target, gradient) in enumerate(zip(targets, gradients, strict=True)):
                if not picks[i]:
                    continue
                seconds, found = self.clock(partial(hessian_products, target, gradient, picks[i]))
                products += seconds
                forms = [curvature_of(target, k, product) for k, product in zip(picks[i], found, strict=True)]
                values[i] += torch.tensor(forms, dtype=torch.float64) * (stop - start) / n
        return graph, products, values


def scaled_to_all(targets: Sequence[Target], each: dict[int, float]) -> float:
    """Seconds of every product there is, from those of one product of some weights, by their numbers."""
    timed = sum(targets[i].directions.k for i in each)
    total = sum(seconds * targets[i].directions.k for i, seconds in each.items())
    return total * sum(t.directions.k for t in targets) / timed


def curvature_of(target: Target, k: int, product: Tensor) -> float:
    """h_k = <D_k, H D_k> from the product H D_k, shaped like the weight."""
    d = target.directions
    matrix = target.layer.matrix(product).detach().cpu().double()
    return float(d.left[:, k].cpu().double() @ matrix @ d.right[:, k].cpu().double())


@dataclass
class PeerSide:
    """Times another tool's product, one direction of each weight, or all together where it takes several at once.

    What it says of a weight that it cannot multiply by ends its part, not the benchmark.

    Args:
        peer: which.
        reference: whose weights, samples and micro-batch it is timed on.
    """

    peer: Peer
    reference: DoubleBackpropSide
    times: list[float] = field(default_factory=list, init=False)
    missing: Missing | None = field(default=None, init=False)
    n: int = field(default=0, init=False)
    n_timed: int = field(default=0, init=False)
    h: dict[str, tuple[list[int], list[float]]] = field(default_factory=dict, init=False)

    def time(self, targets: Sequence[Target], shared: float) -> None:
        """Time a round, ``shared`` being what every side pays for the gradient and the directions."""
        module = self.peer.find()
        if isinstance(module, Missing):
            self.missing = module
        if self.missing is not None:
            return
        workload, size = self.reference.workload, self.reference.size
        self.n = size if self.peer.at_once else self.reference.n
        batches = [workload.fetch(start, start + size) for start in range(0, self.n, size)]
        each = {}
        self.n_timed = 0
        for i, picked in enumerate(self.reference.picks):
            if not picked:
                continue
            target = targets[i]
            picks = list(range(target.directions.k)) if self.peer.at_once else picked[:1]
            try:
                each[i] = self._one(module, target, Problem.of(workload, target.layer.parameter, batches), picks)
            except Exception as error:  # whatever another tool raises is its answer
                self.missing = failed(error, target.layer.name)
                return
            self.n_timed += len(picks)
        self.times.append(shared + scaled_to_all(targets, each) * workload.source.n / self.n)

    def _one(self, module: Any, target: Target, problem: Problem, picks: list[int]) -> float:
        """Seconds per product of one weight, what precedes them shared by all its directions."""
        clock = self.reference.clock
        vectors = [target.direction(k).to(problem.weight) for k in picks]
        with problem.alone():
            before, multiply = clock(partial(self.peer.prepare, module, problem))
            seconds, products = clock(partial(multiply, vectors))
            forms = [curvature_of(target, k, product) for k, product in zip(picks, products, strict=True)]
        self.h[target.layer.name] = picks, forms
        return float(before / target.directions.k + seconds / len(picks))


@dataclass
class EngineValues:
    """What this package's engines find on the first samples, for comparison with other sides."""

    workload: Workload
    targets: Sequence[Target]
    engine_of: dict[str, EngineName]
    _found: dict[int, dict[str, Tensor]] = field(default_factory=dict, init=False)

    def difference(self, n: int, others: Iterator[tuple[str, list[int], Sequence[float]]]) -> float:
        """Largest |h − h_other| over max |h| of the weight, on the first ``n`` samples."""
        own = self._on(n)
        worst = 0.0
        for name, picks, values in others:
            error = (own[name][picks] - torch.as_tensor(values, dtype=torch.float64)).abs().max()
            worst = max(worst, float(error / own[name].abs().max()))
        return worst

    def _on(self, n: int) -> dict[str, Tensor]:
        if n not in self._found:
            head = replace(self.workload, source=FirstSamples(self.workload.source, n))
            self._found[n] = {}
            for engine in dict.fromkeys(self.engine_of.values()):
                group = [t for t in self.targets if self.engine_of[t.layer.name] is engine]
                measured = make_engine(engine).measure(head, group, groups=1)
                self._found[n] |= {t.layer.name: c.h for t, c in zip(group, measured, strict=True)}
        return self._found[n]
