"""Probe a network while Lightning's ``Trainer`` trains it, by a callback."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from spectrascope.integrations.loggers import Log
from spectrascope.integrations.monitor import CurvatureMonitor, make_monitor, require_monitor_options
from spectrascope.workload import LossFunction

try:
    from lightning.pytorch.callbacks import Callback
except ImportError:  # the package's older name
    from pytorch_lightning.callbacks import Callback

__all__ = ["CurvatureCallback"]


class CurvatureCallback(Callback):  # type: ignore[misc]
    """Probe the network every so many optimizer steps; give it to ``Trainer(callbacks=[…])``.

    Metrics go to the trainer's own loggers, and to ``logs`` as well.

    Args:
        batches: fixed samples, as for :func:`spectrascope.probe`.
        loss_fn: as for :func:`spectrascope.probe`.
        network: the part of the ``LightningModule`` that is measured; all of it when ``None``, through its ``forward``.
        every: optimizer steps between probes.
        budget: time for probes per time for training.
        logs: where metrics go besides the trainer's loggers.
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
        network: Callable[[Any], nn.Module] | None = None,
        every: int = 500,
        budget: float = 0.05,
        logs: Sequence[Log] = (),
        reports: str | Path | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        require_monitor_options({"every": every, "budget": budget, **options}, loss_fn)
        self._batches = batches
        self._loss_fn = loss_fn
        self._network = network
        self._logs = tuple(logs)
        self._options = {"every": every, "budget": budget, "reports": reports, **options}
        self._last = 0
        self.monitor: CurvatureMonitor | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Make the monitor of the network that is about to train."""
        if not trainer.is_global_zero:
            return
        model = pl_module if self._network is None else self._network(pl_module)
        logs = (*self._logs, _TrainerLog(trainer))
        self._last = trainer.global_step
        self.monitor = make_monitor(model, self._batches, self._loss_fn, logs=logs, **self._options)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Probe where a probe is due; batches that only accumulate gradients are no steps."""
        if self.monitor is not None and trainer.global_step != self._last:
            self._last = trainer.global_step
            self.monitor.step(trainer.global_step)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Close the logs."""
        if self.monitor is not None:
            self.monitor.close()


class _TrainerLog:
    """Log to the trainer's own loggers."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        for logger in self._trainer.loggers:
            logger.log_metrics(dict(metrics), step=step)

    def note(self, step: int, text: str) -> None:
        pass  # Lightning's loggers take numbers only

    def close(self) -> None:
        pass
