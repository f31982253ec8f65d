"""Probe a network while it trains, in any loop: every so many steps, within a time budget, changing nothing."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spectrascope.advice.trajectory import STEP_KEY
from spectrascope.api.measuring import foretell_cost, list_engines, probe
from spectrascope.api.options import require_options
from spectrascope.errors import OptionError
from spectrascope.integrations.budget import Deadline, OutOfTimeError, TimeBudget
from spectrascope.integrations.loggers import Log
from spectrascope.integrations.metrics import report_metrics
from spectrascope.losses import make_loss
from spectrascope.network.effective import parametrized_weights, unwrapped
from spectrascope.network.kept import fixed_source, random_state_kept
from spectrascope.network.layers import find_layers
from spectrascope.records.inspection import CostEstimate
from spectrascope.records.report import Report
from spectrascope.records.signal import Estimate
from spectrascope.records.values import EngineName
from spectrascope.reports.json import report_to_json
from spectrascope.reports.write import write_text_atomically
from spectrascope.text import first_line, listed
from spectrascope.workload import LossFunction, OnProgress, silent

__all__ = ["CurvatureMonitor", "make_monitor", "require_monitor_options"]

_LOG = logging.getLogger(__name__)
_OWN = ("every", "budget", "logs", "reports", "per_layer", "clock")


class CurvatureMonitor:
    """Probe a network every so many steps of its training.

    Weights, gradients, buffers, optimizer, modes and the random state of torch, NumPy and Python are left as they were:
    the training goes on bit for bit as without, whatever fails: an error of the loss, the network, a log or this
    package is a probe left out, with a warning through ``logging`` (logger ``spectrascope.integrations.monitor``),
    the first of each kind; ``skipped`` counts them, and :meth:`close` says how many. Ctrl-C is the user's. Under
    ``torch.distributed`` only the process of rank 0 probes, the others wait for it in their next collective call.

    Args:
        model: the network as it trains; a ``DistributedDataParallel`` is looked into.
        batches: fixed samples to measure on, as for :func:`spectrascope.probe`. Read once, here; give it a loader of
            its own, best of held-out samples, rather than the one that training draws from.
        loss_fn: as for :func:`spectrascope.probe`.
        every: steps between probes.
        budget: time for probes per time for training; 0.05 makes training at most 5 % longer. A probe that is due but
            not covered is left out, and the next one is due ``every`` steps later.
        logs: where metrics go; see :mod:`spectrascope.integrations.loggers`.
        reports: folder for one report per probe, ``step-00000500.json``, for ``spectrascope trajectory``; no files
            when ``None``.
        per_layer: log the numbers of each layer, not only medians and counts.
        num_samples: at most so many samples.
        clock: seconds that only increase.
        options: more of :func:`spectrascope.probe`: ``top_k``, ``layers``, ``engine``, ``null_draws``,
            ``curvature_samples``, …. ``estimate`` is ``both`` where the class-factor engine measures every weight,
            whose sweeps take held-out directions along at little cost, and ``held-out`` elsewhere: there the published
            beta would be a second pass, half of the probes that the budget pays for.

    Raises:
        OptionError: ``every`` or ``budget`` is not positive, one of ``options`` is misspelt or out of range, or a glob
            matches no weight.

    Cost: nothing between probes but a comparison of two numbers; a probe costs what :func:`spectrascope.probe` does.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: object,
        loss_fn: LossFunction | str | None = None,
        *,
        every: int = 500,
        budget: float = 0.05,
        logs: Sequence[Log] = (),
        reports: str | Path | None = None,
        per_layer: bool = True,
        num_samples: int = 512,
        clock: Callable[[], float] = time.perf_counter,
        **options: Any,
    ) -> None:
        require_monitor_options({"every": every, "budget": budget, "num_samples": num_samples, **options}, loss_fn)
        _require_layers(model, options)
        self.model = model
        self.every = every
        self.budget = TimeBudget(budget, clock)
        self.n_probes = 0
        self.skipped: Counter[str] = Counter()
        self._loss_fn = loss_fn
        self._logs = tuple(logs)
        self._reports = None if reports is None else Path(reports)
        self._per_layer = per_layer
        self._options = options
        self._clock = clock
        self._steps = 0
        self._warned: set[str] = set()
        self._source = fixed_source(batches, num_samples)
        self._num_samples = num_samples
        if self._reports is not None:
            try:
                self._reports.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OptionError(f"cannot make the folder {self._reports}: {error.strerror or error}") from error

    def start(self) -> None:
        """Note that training begins: the time budget counts from here. The first :meth:`step` does it too."""
        self.budget.start()

    def step(self, step: int | None = None) -> Report | None:
        """Call after each step of the optimizer.

        Args:
            step: number of steps taken so far; counted here when ``None``.

        Returns:
            The report, where a probe was due, covered by the budget, and went well. A probe that fails is logged as a
            warning: training goes on.
        """
        try:
            self.budget.start()
            self._steps = self._steps + 1 if step is None else int(step)
            if self._steps % self.every or self._steps == 0 or not _is_first_process():
                return None
            if self.budget.may_begin():
                return self._probe(self._steps, self.budget.left)
            left, expected = max(self.budget.left, 0.0), self.budget.expected
            self._skip("budget", f"{left:.2g} s are left of the time budget, a probe takes some {expected:.2g} s")
            self.budget.wait()
        except OutOfTimeError as error:
            self._skip(
                "budget", f"given up, as it would take some {error.expected:.2g} s, more than the time budget has left"
            )
        except Exception as error:  # of the loss, the network, a log: whatever it is, the training goes on
            self._warn(error)
            self._skip(type(error).__name__, first_line(error))
        return None

    def measure(self, step: int | None = None) -> Report:
        """Probe now, whatever is left of the budget (the time counts); before training, say, or at its end.

        Raises:
            SpectrascopeError: it cannot be measured.
        """
        return self._probe(self._steps if step is None else step, None)

    @property
    def network(self) -> nn.Module:
        """The network that is probed, bare of what distributes it."""
        return _bare(self.model)

    @property
    def n_samples(self) -> int:
        """How many samples a probe measures on."""
        return min(self._source.n, self._num_samples)

    def foretell_cost(self) -> CostEstimate:
        """Say roughly what a probe costs, from shapes alone.

        Raises:
            SpectrascopeError: it cannot be measured.
        """
        with random_state_kept(), torch.inference_mode(False):
            return foretell_cost(
                self.network, self._source, self._loss_fn, num_samples=self._num_samples, **self._options
            )

    def close(self) -> None:
        """Close the logs, and say how many probes failed; a log that cannot be closed is a warning."""
        failed = {kind: count for kind, count in self.skipped.items() if kind != "budget"}
        if failed:
            _LOG.warning("%d probes left out: %s", sum(failed.values()), _counts(failed))
        for log in self._logs:
            try:
                log.close()
            except Exception as error:
                self._warn(error)

    def describe(self) -> str:
        """Say in a line how many probes were made and what they cost."""
        budget = self.budget
        hint = f" ({_counts(self.skipped)})" if self.n_skipped else ""
        slow = ""
        if self.skipped["budget"] and not self.n_probes:
            slow = f"; a probe takes some {budget.expected:.2g} s: try fewer layers, samples or directions (top_k)"
        return (
            f"{self.n_probes} probes, {self.n_skipped} left out{hint}, {budget.spent:.1f} s on {budget.training:.1f} s "
            f"of training: {100 * budget.overhead:.1f} % (budget {100 * budget.share:g} %){slow}"
        )

    def _probe(self, step: int, seconds: float | None) -> Report:
        began, expected = self._clock(), None
        watch = silent if seconds is None else Deadline(seconds, self._clock)
        try:
            with random_state_kept(), torch.inference_mode(False), torch.enable_grad():
                if "estimate" not in self._options:
                    self._options["estimate"] = self._affordable_estimate(watch)
                report = probe(
                    _bare(self.model),
                    self._source,
                    self._loss_fn,
                    num_samples=self._num_samples,
                    on_progress=watch,
                    **self._options,
                )
            report = replace(report, extra={**report.extra, STEP_KEY: step})
            self._keep(step, report)
        except OutOfTimeError as error:
            expected = error.expected
            raise
        finally:
            self.budget.spend(self._clock() - began, expected)
        self.n_probes += 1
        return report

    def _affordable_estimate(self, watch: OnProgress) -> Estimate:
        """Both where held-out directions ride along in the same sweeps, else those alone."""
        engines = list_engines(_bare(self.model), self._source, self._loss_fn, on_progress=watch, **self._options)
        return Estimate.BOTH if engines == {EngineName.GAUSS_NEWTON} else Estimate.HELD_OUT

    def _keep(self, step: int, report: Report) -> None:
        if self._reports is not None:
            write_text_atomically(self._reports / f"step-{step:08d}.json", report_to_json(report) + "\n")
        if self._logs:
            metrics = report_metrics(report, per_layer=self._per_layer)
            for log in self._logs:
                log.write(step, metrics)

    @property
    def n_skipped(self) -> int:
        """Probes that were due and not made."""
        return sum(self.skipped.values())

    def _skip(self, kind: str, reason: str) -> None:
        self.skipped[kind] += 1
        for log in self._logs:
            try:
                log.note(self._steps, reason)
            except Exception as error:
                self._warn(error)

    def _warn(self, error: Exception) -> None:
        """Log the first error of each kind: a probe that fails every time must not flood the log of a training."""
        kind = type(error).__name__
        if kind not in self._warned:
            self._warned.add(kind)
            _LOG.warning("no probe at step %d: %s: %s", self._steps, kind, first_line(error))


def require_monitor_options(options: Mapping[str, Any], loss_fn: object = None) -> None:
    """Refuse what a callback was given for its monitor, when the callback is made: long before training begins.

    Args:
        options: keywords of :class:`CurvatureMonitor`.
        loss_fn: a loss or its name.

    Raises:
        OptionError: one of them is misspelt or out of range.
    """
    rest = {name: value for name, value in options.items() if name not in _OWN}
    every = options.get("every", 1)
    if not isinstance(every, int) or every < 1:
        raise OptionError(f"every must be at least 1 step, got {every!r}")
    TimeBudget(options.get("budget", 1.0))
    samples = rest.get("num_samples")
    if samples is not None and (not isinstance(samples, int) or samples < 1):
        raise OptionError(f"num_samples must be at least 1, got {samples!r}")
    require_options(rest)
    if isinstance(loss_fn, str):
        make_loss(loss_fn)
    elif loss_fn is not None and not callable(loss_fn):
        raise OptionError(f"loss_fn is a {type(loss_fn).__name__}: expected a function (output, targets), or a name")


def _require_layers(model: nn.Module, options: Mapping[str, Any]) -> None:
    """Refuse globs that match no weight, where the weights can be told now."""
    network = unwrapped(model)
    if parametrized_weights(network):
        return  # their names are those of the effective weights, in a copy made to measure
    try:
        find_layers(network, *(listed(options.get(name, ()), name) for name in ("layers", "exclude")))
    except OptionError:
        raise
    except Exception:  # a network that cannot be measured is left out at every step, and does not end the training
        _LOG.debug("the weights of this network cannot be listed yet", exc_info=True)


def _counts(skipped: Mapping[str, int]) -> str:
    return ", ".join(f"{count} × {kind}" for kind, count in skipped.items())


def make_monitor(
    model: nn.Module, batches: object, loss_fn: LossFunction | str | None, **options: Any
) -> CurvatureMonitor | None:
    """Make a monitor of a network that is about to train, or log why there is none: the training goes on without."""
    try:
        monitor = CurvatureMonitor(model, batches, loss_fn, **options)
    except Exception as error:
        _LOG.warning("no probes in this training: %s: %s", type(error).__name__, first_line(error))
        return None
    monitor.start()
    return monitor


def _bare(model: nn.Module) -> nn.Module:
    if isinstance(model, nn.parallel.DistributedDataParallel):
        inner: nn.Module = model.module
        return inner
    return model


def _is_first_process() -> bool:
    distributed = torch.distributed
    if not distributed.is_available() or not distributed.is_initialized():
        return True
    return distributed.get_rank() == 0
