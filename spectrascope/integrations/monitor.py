"""Probe a network while it trains, in any loop: every so many steps, within a time budget, changing nothing."""

from __future__ import annotations

import contextlib
import random
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from spectrascope.advice.trajectory import STEP_KEY
from spectrascope.api import probe
from spectrascope.errors import OptionError, SpectrascopeError
from spectrascope.integrations.budget import Deadline, OutOfTimeError, TimeBudget
from spectrascope.integrations.loggers import Log
from spectrascope.integrations.metrics import report_metrics
from spectrascope.records.report import Report
from spectrascope.reports.json import report_to_json
from spectrascope.reports.write import write_text_atomically
from spectrascope.workload import LossFunction, silent, source_from_batches

__all__ = ["CurvatureMonitor", "random_state_kept"]


class CurvatureMonitor:
    """Probe a network every so many steps of its training.

    Weights, gradients, buffers, optimizer, modes and the random state of torch, NumPy and Python are left as they were:
    the training goes on bit for bit as without. Under ``torch.distributed`` only the process of rank 0 probes, the
    others wait for it in their next collective call.

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
        options: more of :func:`spectrascope.probe`: ``top_k``, ``layers``, ``engine``, ….

    Raises:
        OptionError: ``every`` or ``budget`` is not positive.

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
        if every < 1:
            raise OptionError(f"every must be at least 1 step, got {every}")
        self.model = model
        self.every = every
        self.budget = TimeBudget(budget, clock)
        self.n_probes = 0
        self.n_skipped = 0
        self._loss_fn = loss_fn
        self._logs = tuple(logs)
        self._reports = None if reports is None else Path(reports)
        self._per_layer = per_layer
        self._options = options
        self._clock = clock
        self._steps = 0
        with random_state_kept():  # a loader draws its order from the global generator
            self._source = source_from_batches(batches, num_samples)
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
            The report, where a probe was due, covered by the budget, and went well. A probe that fails is a warning:
            training goes on.
        """
        self.budget.start()
        self._steps = self._steps + 1 if step is None else step
        if self._steps % self.every or self._steps == 0 or not _is_first_process():
            return None
        if not self.budget.may_begin():
            left, expected = max(self.budget.left, 0.0), self.budget.expected
            self._skip(f"{left:.2g} s are left of the time budget, a probe takes some {expected:.2g} s")
            self.budget.wait()
            return None
        try:
            return self._probe(self._steps, self.budget.left)
        except OutOfTimeError as error:
            self._skip(f"given up, as it would take some {error.expected:.2g} s, more than the time budget has left")
        except SpectrascopeError as error:
            warnings.warn(f"spectrascope: no probe at step {self._steps}: {error}", stacklevel=2)
            self._skip(str(error))
        return None

    def measure(self, step: int | None = None) -> Report:
        """Probe now, whatever is left of the budget (the time counts); before training, say, or at its end.

        Raises:
            SpectrascopeError: it cannot be measured.
        """
        return self._probe(self._steps if step is None else step, None)

    def close(self) -> None:
        """Close the logs."""
        for log in self._logs:
            log.close()

    def describe(self) -> str:
        """Say in a line how many probes were made and what they cost."""
        budget = self.budget
        hint = ""
        if self.n_skipped and not self.n_probes:
            hint = f"; a probe takes some {budget.expected:.2g} s: try fewer layers, samples or directions (top_k)"
        return (
            f"{self.n_probes} probes, {self.n_skipped} left out, {budget.spent:.1f} s on {budget.training:.1f} s of "
            f"training: {100 * budget.overhead:.1f} % (budget {100 * budget.share:g} %){hint}"
        )

    def _probe(self, step: int, seconds: float | None) -> Report:
        began, expected = self._clock(), None
        watch = silent if seconds is None else Deadline(seconds, self._clock)
        try:
            with random_state_kept(), torch.inference_mode(False), torch.enable_grad():
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

    def _keep(self, step: int, report: Report) -> None:
        if self._reports is not None:
            write_text_atomically(self._reports / f"step-{step:08d}.json", report_to_json(report) + "\n")
        if self._logs:
            metrics = report_metrics(report, per_layer=self._per_layer)
            for log in self._logs:
                log.write(step, metrics)

    def _skip(self, reason: str) -> None:
        self.n_skipped += 1
        for log in self._logs:
            log.note(self._steps, reason)


@contextlib.contextmanager
def random_state_kept() -> Iterator[None]:
    """Restore at the end the random state of torch (every device), NumPy and Python as it was."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


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
