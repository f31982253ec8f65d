"""Measure networks, each once: trained weights and reports stay in a folder, so that a broken run goes on."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

import spectrascope
from examples.paper.full import full_recipes
from examples.paper.networks import SEEDS, WIDTHS, Data, Recipe, digits, images, loss_of, recipes
from spectrascope.loading.models.open import load_model
from spectrascope.records.report import Report
from spectrascope.records.signal import LabelSource
from spectrascope.records.values import Missing
from spectrascope.reports.json import report_to_json
from spectrascope.reports.read import read_report
from spectrascope.reports.write import write_text_atomically

EMBEDDED = {"digits-cnn": "digits-cnn@final", "digits-cnn-early": "digits-cnn@early"}
TRAINED = ("resnet20", "resnet32", "resnet44")
"""Checkpoints of the shared folder."""


@dataclass
class Lab:
    """Where runs are kept, which data there are, and how much is measured.

    ``samples`` are measured of every network, ``scale`` multiplies the steps of training. ``shared`` is a folder of
    real data and checkpoints; ``root`` one of whole datasets, for networks of the paper's size on ``device``.
    """

    folder: Path
    shared: Path | None
    samples: int = 512
    scale: float = 1.0
    root: Path | None = None
    device: str = "cpu"
    _reports: dict[str, Report] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        data = "full" if self.root is not None else self.shared is not None
        setting = {"samples": self.samples, "scale": self.scale, "shared": data}
        kept = self.folder / "setting.json"
        if kept.exists() and json.loads(kept.read_text(encoding="utf-8")) != setting:
            raise SystemExit(f"{self.folder} holds runs of another size or other data: name another folder with --runs")
        write_text_atomically(kept, json.dumps(setting))
        small = recipes(self.scale)
        self.recipes: dict[str, Recipe] = small if self.root is None else small | full_recipes(self.scale, self.root)

    def members(self, network: str) -> tuple[str, ...]:
        """The networks that a claim's name stands for, measured together: none where there are none here."""
        widths = {f"mlp-{width}": tuple(f"mlp-{width}-seed-{seed}" for seed in SEEDS) for width in WIDTHS}
        if network == "widths":
            return tuple(name for names in widths.values() for name in names)
        if network in ("cnn", "cnn-wide"):
            if self.root is not None:
                return ("resnet18",)
            return ("digits-cnn",) if self.shared is None else TRAINED if network == "cnn" else TRAINED[:1]
        if network == "head-1000" or (network == "conv-200" and self.shared is None and self.root is None):
            return ()
        return widths.get(network, (network,))

    def label(self, network: str) -> str:
        """How a claim's network is called in a table."""
        names = self.members(network)
        if not names:
            return "not here"
        return network if len(names) > len(TRAINED) else ", ".join(names)

    def reports(self, network: str, labels: LabelSource = LabelSource.DATA, top_k: int = 20) -> list[Report] | Missing:
        """Decompositions on the networks' own labels, or on labels drawn from them: then the true gradient is zero."""
        names = self.members(network)
        return [self._measure(name, labels, top_k) for name in names] or Missing("no such network or data are here")

    def measured(self) -> dict[str, Report]:
        """What was measured on its own labels with the usual window, by name."""
        ending = f"-{LabelSource.DATA.value}"
        return {key.removesuffix(ending): report for key, report in self._reports.items() if key.endswith(ending)}

    def _measure(self, name: str, labels: LabelSource, top_k: int) -> Report:
        key = f"{name}-{labels.value}" + ("" if top_k == 20 else f"-{top_k}")
        if key in self._reports:
            return self._reports[key]
        path = self.folder / f"{key}.json"
        if not path.exists():
            model, data = self.network(name)
            recipe = self.recipes.get(name)
            n = min(self.samples, len(data), (recipe and recipe.at_most) or self.samples)
            print(f"measure {key}: {n} samples", file=sys.stderr)
            measure = spectrascope.decompose if recipe is None or recipe.factors else spectrascope.probe
            report = measure(
                model, (data.inputs[:n], data.targets[:n]), loss_of, labels=labels, groups=16, null_draws=0,
                top_k=top_k, layers=recipe.layers if recipe else (), device=self.device,
            )  # fmt: skip
            write_text_atomically(path, report_to_json(report))
        self._reports[key] = read_report(path)
        return self._reports[key]

    def network(self, name: str) -> tuple[nn.Module, Data]:
        """A trained network in eval mode, and its data in random order."""
        if name in TRAINED and self.shared is not None:
            path = next((self.shared / "checkpoints").glob(f"{name}-*.th"))
            return load_model(str(path)).model.eval(), images(self.shared)
        if name in EMBEDDED:
            return load_model(EMBEDDED[name]).model.eval(), _mixed(digits())
        recipe = self.recipes[name]
        data = (recipe.measured or recipe.data)(self.shared)
        torch.manual_seed(recipe.seed)
        model = recipe.build(data)
        path = self.folder / f"{name}.pt"
        if path.exists():
            model.load_state_dict(torch.load(path, weights_only=True))
        else:
            print(f"train {name}: {recipe.steps} steps", file=sys.stderr)
            model = recipe.train(self.shared, self.device)
            torch.save(model.state_dict(), path.with_suffix(".part"))
            path.with_suffix(".part").replace(path)
        return model.eval(), _mixed(data)


def _mixed(data: Data) -> Data:
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(3))
    return Data(data.inputs[order], data.targets[order], data.classes)
