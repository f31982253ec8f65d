"""Log the numbers of a training run: to JSON lines, TensorBoard or Weights & Biases."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from spectrascope.errors import OptionError
from spectrascope.integrations.metrics import PREFIX

__all__ = ["JsonLinesLog", "Log", "TensorBoardLog", "WandbLog"]


class Log(Protocol):
    """What a monitor writes to."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Note the numbers of a probe."""

    def note(self, step: int, text: str) -> None:
        """Note that a probe was due and not made, and why."""

    def close(self) -> None:
        """Finish: nothing more will come."""


class JsonLinesLog:
    """One JSON object per line: ``step`` and the metrics, or ``step`` and ``skipped`` with the reason.

    Lines are appended and written out at once, so that a run that is broken off leaves whole lines.

    Args:
        path: the file; its folder is made.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise OptionError(f"cannot write {self.path}: {error.strerror or error}") from error

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append a line with the numbers of a probe."""
        self._append({"step": step, **metrics})

    def note(self, step: int, text: str) -> None:
        """Append a line with the reason why a probe was not made."""
        self._append({"step": step, "skipped": text})

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def _append(self, record: dict[str, Any]) -> None:
        self._stream.write(json.dumps(record, allow_nan=False) + "\n")
        self._stream.flush()


class TensorBoardLog:
    """Scalars in TensorBoard; needs ``pip install 'spectrascope[tensorboard]'``.

    Args:
        target: a log folder, or a ``SummaryWriter`` you already have, which is left open.
    """

    def __init__(self, target: Any) -> None:
        self._own = isinstance(target, (str, Path))
        if not self._own:
            self._writer = target
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise OptionError("TensorBoard is not installed: pip install 'spectrascope[tensorboard]'") from error
        self._writer = SummaryWriter(str(target))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write a scalar per metric."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def note(self, step: int, text: str) -> None:
        """Write the reason why a probe was not made as a text."""
        self._writer.add_text(f"{PREFIX}/skipped", text, step)

    def close(self) -> None:
        """Close the writer, unless it was given."""
        if self._own:
            self._writer.close()


class WandbLog:
    """Metrics in Weights & Biases, over a step of their own (``curvature/step``), so that they never disturb yours.

    Needs ``pip install 'spectrascope[wandb]'``.

    Args:
        run: a run; the current one when ``None``. It is left open.
    """

    def __init__(self, run: Any = None) -> None:
        if run is None:
            try:
                import wandb
            except ImportError as error:
                raise OptionError("Weights & Biases is not installed: pip install 'spectrascope[wandb]'") from error
            run = wandb.run
            if run is None:
                raise OptionError("no Weights & Biases run is active: call wandb.init() first, or pass the run")
        self._run = run
        run.define_metric(f"{PREFIX}/step")
        run.define_metric(f"{PREFIX}/*", step_metric=f"{PREFIX}/step")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics together."""
        self._run.log({f"{PREFIX}/step": step, **metrics})

    def note(self, step: int, text: str) -> None:
        """Count the probe that was not made; the reason is in the summary."""
        self._run.summary[f"{PREFIX}/last_skipped"] = f"step {step}: {text}"

    def close(self) -> None:
        """Leave the run as it is."""
