"""The tables that pages show of ``examples/benchmarks/*.json``: ``python -m tests.support.benchmarks`` writes them."""

from __future__ import annotations

import itertools
import json
import statistics
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "benchmarks"
PAGE = ROOT / "spectrascope" / "data" / "explain" / "guides" / "exactness.md"
NETWORKS = {
    "digits-cnn": "digits-cnn, 1 797 digits",
    "resnet20": "ResNet-20, 256 images",
    "gpt2-small": "small GPT-2, 16 × 128 tokens",
    "gpt2-small-48": "the same, 16 × 48 tokens",
    "gpt2-768": "GPT-2 12 × 768, 128 tokens",
    "vit-b-16": "ViT-B/16, one image",
}


def read(name: str) -> dict[str, Any]:
    """What a benchmark found."""
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return found


def speed() -> str:
    """One row per network: forward passes per (weight, k) and, of others, the ratio to ours; how far h is off."""
    found = {title: read(name) for name, title in NETWORKS.items()}
    tools = next({p["name"]: p["version"] for p in f["peers"]} for f in found.values() if f["peers"])
    heads = ["", "ours", "rebuilt", "kept", *(name.removeprefix("hessian-") for name in tools)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for title, f in found.items():
        peers = {p["name"]: _beside_ours(p["per_product"], p["ratio"]) for p in f["peers"]}
        kept = _beside_ours(f["kept_graph_per_product"], f["kept_graph_ratio"])
        rebuilt = _beside_ours(f["reference_per_product"], f["ratio"])
        cells = [title, f"{f['engine_per_product']:.2f}", rebuilt, kept, *(peers.get(name, "–") for name in tools)]
        lines.append(f"| {' | '.join(cells)} |")
    furthest = max(side["max_relative_difference"] for f in found.values() for side in (f, *f["peers"]))
    versions = ", ".join(f"{name} {version}" for name, version in tools.items())
    return "\n".join([*lines, "", f"{versions}. h differs by at most {furthest:.0e} of a weight's largest."])


def _beside_ours(per_product: float, ratio: float) -> str:
    return f"{per_product:.1f} ({ratio:.1f})"


def samples() -> str:
    """Of each network and N: the width of the step exponent's interval at each M."""
    lines = [
        "| | N | width of the step exponent's interval at M = … | forward passes per sample at M = N |",
        "|---|---|---|---|",
    ]
    for file in sorted(FOLDER.glob("curvature-samples-*.json")):
        points = json.loads(file.read_text(encoding="utf-8"))["points"]
        for n, group in itertools.groupby(sorted(points, key=lambda p: (p["n"], p["m"])), key=lambda p: p["n"]):
            of_n = list(group)
            widths = []
            for m, some in itertools.groupby(of_n, key=lambda p: p["m"]):
                widths.append(f"{m}: {statistics.mean(p['step_width'] for p in some):.2f}")
            name = file.stem.removeprefix("curvature-samples-")
            lines.append(f"| {name} | {n} | {', '.join(widths)} | {of_n[-1]['total_passes'] / n:.0f} |")
    return "\n".join(lines)


def with_tables(page: str) -> str:
    """A page with its tables written anew."""
    for name, table in (("benchmarks", speed()), ("curvature samples", samples())):
        opening, end = f"<!-- {name}: python -m tests.support.benchmarks -->\n", f"<!-- end of {name} -->"
        before, rest = page.split(opening)
        page = before + opening + table + "\n" + end + rest.split(end, 1)[1]
    return page


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
