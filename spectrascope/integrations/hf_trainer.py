"""Probe a network while Hugging Face's ``Trainer`` trains it, by a callback."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from spectrascope.integrations.loggers import Log
from spectrascope.integrations.monitor import CurvatureMonitor, make_monitor, require_monitor_options
from spectrascope.workload import LossFunction

__all__ = ["CurvatureTrainerCallback"]


class CurvatureTrainerCallback(TrainerCallback):
    """Probe the network every so many optimizer steps; give it to ``Trainer(callbacks=[…])``.

    Args:
        batches: fixed samples, as dicts of tensors with ``labels`` (a collator's output) or (inputs, targets).
        loss_fn: as for :func:`spectrascope.probe`; when ``None``, what the network's class is for.
        every: optimizer steps between probes.
        budget: time for probes per time for training.
        logs: where metrics go.
        reports: folder for one report per probe.
        options: more of :class:`~spectrascope.integrations.monitor.CurvatureMonitor`.

    Raises:
        OptionError: one of ``options`` is misspelt or out of range.
    """

    def __init__(
        self,
        batches: object,
        loss_fn: LossFunction | str | None = None,
        *,
        every: int = 500,
        budget: float = 0.05,
        logs: Sequence[Log] = (),
        reports: str | Path | None = None,
        **options: Any,
    ) -> None:
        require_monitor_options({"every": every, "budget": budget, **options}, loss_fn)
        self._batches = batches
        self._loss_fn = loss_fn
        self._options = {"every": every, "budget": budget, "logs": logs, "reports": reports, **options}
        self.monitor: CurvatureMonitor | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Make the monitor of the network that is about to train."""
        if model is not None and state.is_world_process_zero:
            self.monitor = make_monitor(model, self._batches, self._loss_fn, **self._options)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Probe where a probe is due."""
        if self.monitor is not None:
            self.monitor.step(state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the logs."""
        if self.monitor is not None:
            self.monitor.close()
