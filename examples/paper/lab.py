"""Measure networks, each once: trained weights and reports stay in a folder, so that a broken run goes on."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

import spectrascope
from examples.paper.networks import Data, digits, images, loss_of, recipes
from spectrascope.records.report import Report
from spectrascope.records.signal import LabelSource
from spectrascope.reports.json import report_to_json
from spectrascope.reports.read import read_report
from spectrascope.reports.write import write_text_atomically


@dataclass
class Lab:
    """Where runs are kept, which data there are, and how much is measured.

    ``samples`` are measured of every network, ``scale`` multiplies the steps of training.
    """

    folder: Path
    shared: Path | None
    samples: int = 512
    scale: float = 1.0
    _reports: dict[str, Report] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        setting = {"samples": self.samples, "scale": self.scale, "shared": self.shared is not None}
        kept = self.folder / "setting.json"
        if kept.exists() and json.loads(kept.read_text(encoding="utf-8")) != setting:
            raise SystemExit(f"{self.folder} holds runs of another size or other data: name another folder with --runs")
        write_text_atomically(kept, json.dumps(setting))

    def report(self, name: str) -> Report:
        """The decomposition of a network on its own labels."""
        return self._measure(name, LabelSource.DATA)

    def null(self, name: str) -> Report:
        """The same with labels drawn from the network itself, so that the true gradient is zero."""
        return self._measure(name, LabelSource.MODEL)

    def _measure(self, name: str, labels: LabelSource) -> Report:
        key = f"{name}-{labels.value}"
        if key in self._reports:
            return self._reports[key]
        path = self.folder / f"{key}.json"
        if not path.exists():
            print(f"measure {key}", file=sys.stderr)
            model, data = self.network(name)
            few = data.inputs[: self.samples], data.targets[: self.samples]
            report = spectrascope.decompose(model, few, loss_of, labels=labels, groups=16, null_draws=0)
            write_text_atomically(path, report_to_json(report))
        self._reports[key] = read_report(path)
        return self._reports[key]

    def network(self, name: str) -> tuple[nn.Module, Data]:
        """A trained network in eval mode, and its data in random order."""
        if name.startswith("cnn"):
            return self._cnn(name)
        recipe = recipes(self.scale)[name]
        data = recipe.data(self.shared)
        torch.manual_seed(recipe.seed)
        model = recipe.build(data)
        path = self.folder / f"{name}.pt"
        if path.exists():
            model.load_state_dict(torch.load(path, weights_only=True))
        else:
            print(f"train {name}: {recipe.steps} steps", file=sys.stderr)
            model, _ = recipe.train(self.shared)
            torch.save(model.state_dict(), path.with_suffix(".part"))
            path.with_suffix(".part").replace(path)
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(3))
        return model.eval(), Data(data.inputs[order], data.targets[order], data.classes)

    def _cnn(self, name: str) -> tuple[nn.Module, Data]:
        """``cnn-early`` and ``cnn`` are the embedded ones; ``cnn`` is the shared ResNet-20 where that is here."""
        from spectrascope.loading.models.open import load_model

        if name == "cnn" and self.shared is not None:
            path = next((self.shared / "checkpoints").glob("resnet20-*.th"))
            return load_model(str(path)).model.eval(), images(self.shared)
        embedded = {"cnn": "digits-cnn@final", "cnn-early": "digits-cnn@early", "cnn-late": "digits-cnn@final"}[name]
        data = digits()
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(3))
        return load_model(embedded).model.eval(), Data(data.inputs[order], data.targets[order], 10)
