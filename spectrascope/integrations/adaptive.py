"""Measure exponents and dampings again and again while a ``SpectralNewton`` trains, within a budget that is counted."""

from __future__ import annotations

import logging
from typing import Any

from torch import nn

from spectrascope.advice.advise import advise
from spectrascope.errors import OptionError, UnsupportedModelError
from spectrascope.integrations.monitor import CurvatureMonitor
from spectrascope.network.flops import FlopCount
from spectrascope.optim import SpectralNewton
from spectrascope.records.advice import Advice
from spectrascope.records.report import Report
from spectrascope.records.signal import Estimate, GradientSource
from spectrascope.records.values import Missing
from spectrascope.text import first_line
from spectrascope.workload import LossFunction

__all__ = ["AdaptiveExponents"]

_LOG = logging.getLogger(__name__)

_RESERVE = 1.2
"""For a cost foretold, which is known to a factor of two: a first measurement given up is a waste of what it took."""

_TRAINING_PASSES = 3
"""Forward-equivalents of a training step for each of its samples: one forward, and two for the backward pass."""


class AdaptiveExponents:
    """Give the weights of a ``SpectralNewton`` the step exponents and dampings that fresh measurements bear out.

    Every so many steps a :class:`~spectrascope.integrations.monitor.CurvatureMonitor` measures the network along the
    directions of the optimizer's momentum, which are those it steps along, with slopes and curvature of samples that
    did not choose them. Weights whose exponent is determined take it, with its damping; all others keep what they
    have. Nothing else is touched: weights, gradients, momentum, modes and random states are left as found, and what
    fails is a measurement left out with a warning through ``logging``, never the end of a training.

    What probes may cost is counted in floating-point operations, not timed, so that a run can be repeated exactly.

    Args:
        optimizer: steps the network; its groups with ``beta=None`` stay AdamW's.
        model: the network as it trains.
        batches: fixed samples to measure on, as for :func:`spectrascope.probe`; a few hundred that the training does
            not use, or uses rarely.
        loss_fn: as for :func:`spectrascope.probe`.
        train_batch: samples of a training step, by which the training's own passes are counted.
        every: steps between measurements.
        budget: forward passes for measurements per forward-equivalent of training (a step counts as three for each
            of its samples); 0.1 makes training at most 10 % dearer. A measurement that is due but not covered is left
            out.
        options: more of :class:`~spectrascope.integrations.monitor.CurvatureMonitor` and :func:`spectrascope.probe`:
            ``logs``, ``reports``, ``num_samples``, ``top_k``, ``curvature_samples``, …. ``gradient="batch"`` takes the
            directions of the samples' own gradient instead of the momentum's.

    Raises:
        OptionError: the optimizer is not a ``SpectralNewton``, ``train_batch``, ``every`` or ``budget`` is not
            positive, or an option is misspelt or out of range.

    Cost: at most ``budget`` of the training's operations, but for the moment between two signs of progress.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    >>> optimizer = SpectralNewton(model.parameters(), beta=1.0, damping=1e-4, scale_free=True)
    >>> samples = torch.randn(64, 8), torch.randint(0, 3, (64,))
    >>> adaptive = AdaptiveExponents(optimizer, model, samples, "cross-entropy", train_batch=16, every=100)
    >>> adaptive.step() is None  # after every step of the optimizer; none is due yet
    True
    """

    def __init__(
        self,
        optimizer: SpectralNewton,
        model: nn.Module,
        batches: object,
        loss_fn: LossFunction | str | None = None,
        *,
        train_batch: int,
        every: int = 200,
        budget: float = 0.1,
        **options: Any,
    ) -> None:
        if not isinstance(optimizer, SpectralNewton):
            raise OptionError(f"adaptive exponents are for a SpectralNewton, got {type(optimizer).__name__}")
        if train_batch < 1:
            raise OptionError(f"train_batch must be at least 1 sample, got {train_batch}")
        along: dict[str, Any] = {}
        if options.get("gradient", GradientSource.MOMENTUM) == GradientSource.MOMENTUM:
            along = {"gradient": GradientSource.MOMENTUM, "momentum": optimizer}
        self.optimizer = optimizer
        self.advice: Advice | None = None
        self._flops = FlopCount()
        self._flops_per_sample = 0.0
        self._passes_per_step = _TRAINING_PASSES * train_batch
        self._steps = 0
        self.monitor = CurvatureMonitor(
            model,
            batches,
            loss_fn,
            every=every,
            budget=budget,
            clock=self._passes,
            **{"estimate": Estimate.HELD_OUT, "self_check": False, **along, **options},
        )

    @property
    def share(self) -> float:
        """Forward passes made for measurements per forward-equivalent of training, so far."""
        return self.monitor.budget.overhead

    def step(self, step: int | None = None) -> Advice | None:
        """Call after each step of the optimizer.

        Args:
            step: number of steps taken so far; counted here when ``None``.

        Returns:
            The advice that was followed, where a measurement was due, covered and went well.
        """
        self.monitor.start()
        self._steps = self._steps + 1 if step is None else step
        if self._steps == 0 or self._steps % self.monitor.every:
            return None
        try:
            if not self._flops_per_sample:
                self._foretell()
            with self._flops:
                report = self.monitor.step(self._steps)
            return None if report is None else self._follow(report)
        except Exception as error:  # the training goes on, whatever it is
            _LOG.warning("exponents kept at step %d: %s: %s", self._steps, type(error).__name__, first_line(error))
            return None

    def describe(self) -> str:
        """Say in a line how many measurements were made and what they cost."""
        budget, made = self.monitor.budget, self.monitor
        return (
            f"{made.n_probes} measurements, {made.n_skipped} left out, {budget.spent:,.0f} forward passes of a sample "
            f"on {budget.training:,.0f} of training: {100 * self.share:.1f} % (budget {100 * budget.share:g} %)"
        )

    def _foretell(self) -> None:
        """Find the unit of the count, and what a measurement takes: none is begun that the budget does not cover."""
        cost = self.monitor.foretell_cost()
        flops, passes = cost.flops_per_sample, cost.total_passes
        if isinstance(flops, Missing) or flops <= 0:
            why = flops.reason if isinstance(flops, Missing) else "it makes no products or convolutions"
            raise UnsupportedModelError(f"no budget can be kept, as a forward pass cannot be counted: {why}")
        self._flops_per_sample = float(flops)
        if not isinstance(passes, Missing):
            self.monitor.budget.expected = _RESERVE * passes * self.monitor.n_samples

    def _passes(self) -> float:
        """Forward passes of one sample made so far, by the training and by probes: the clock of the budget."""
        probes = self._flops.total / self._flops_per_sample if self._flops_per_sample else 0.0
        return self._steps * self._passes_per_step + probes

    def _follow(self, report: Report) -> Advice:
        self.advice = advice = advise(report)
        named = dict(self.monitor.network.named_parameters())
        chosen = {named[e.name]: e for e in advice.parameters if e.name in named}
        self.optimizer.set_exponents(chosen)
        return advice
