"""Write ``weightwatcher.json``: what WeightWatcher says of the shared checkpoints.

Not part of the test run, as WeightWatcher brings scikit-learn and matplotlib. In an environment of its own:

    pip install weightwatcher==0.7.7 torch
    python tests/frozen/freeze_weightwatcher.py ../shared/checkpoints > tests/frozen/weightwatcher.json

``slices`` are the networks' convolutions as WeightWatcher sees them; ``flat`` the same weights put into linear
layers as outputs × (inputs · kernel) matrices.
"""

import json
import logging
import sys
from pathlib import Path

import torch
from torch import nn

COLUMNS = ("alpha", "xmin", "xmax", "D", "sigma", "num_pl_spikes", "num_evals", "stable_rank", "spectral_norm",
           "norm", "alpha_weighted", "matrix_rank", "Q")  # fmt: skip


class Holder(nn.Module):
    """A module per weight, so that WeightWatcher meets each."""

    def __init__(self, weights: dict[str, torch.Tensor], flat: bool) -> None:
        super().__init__()
        for name, weight in weights.items():
            if weight.dim() == 4 and not flat:
                layer: nn.Module = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2:], bias=False)
            else:
                weight = weight.flatten(1)  # noqa: PLW2901
                layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            layer.weight.data = weight.clone()
            self.add_module(name.replace(".", "/"), layer)


def main() -> None:
    """Analyse the smallest and the largest network."""
    import weightwatcher  # pytest collects this file, and does not need it

    found: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for file in ("resnet20-12fca82f.th", "resnet44-014dd654.th"):
        state = torch.load(Path(sys.argv[1]) / file, map_location="cpu", weights_only=True)["state_dict"]
        weights = {name.removeprefix("module."): tensor for name, tensor in state.items() if tensor.dim() > 1}
        for view in ("slices", "flat"):
            watcher = weightwatcher.WeightWatcher(model=Holder(weights, view == "flat"), log_level=logging.CRITICAL)
            table = watcher.analyze()
            found.setdefault(file, {})[view] = {
                row["longname"].replace("/", "."): {column: float(row[column]) for column in COLUMNS}
                for _, row in table.iterrows()
            }
    json.dump({"weightwatcher": weightwatcher.__version__, "checkpoints": found}, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
