"""What pages say of speed and of samples for curvature is what ``examples/benchmarks`` holds."""

from __future__ import annotations

import json
import runpy

import pytest

from tests.support import benchmarks
from tests.support.benchmarks import FOLDER, PAGE, ROOT, read, with_tables

FILES = sorted(FOLDER.glob("*.json"))


def test_the_page_shows_what_the_files_hold():
    page = PAGE.read_text(encoding="utf-8")
    assert with_tables(page) == page


def test_the_readme_shows_what_the_file_holds():
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    found = read("resnet20")
    said = [f"costs {found['engine_forward_equivalents']:.0f} forward passes", f"{found['ratio']:.0f} times as much"]
    said += [f"({found['kept_graph_ratio']:.0f} with graphs kept)"]
    said += [f"{p['ratio']:.0f} by {p['name']}" for p in found["peers"]]
    for name in ("gpt2-768", "vit-b-16"):
        found = read(name)
        said += [f"{found['engine_per_product']:.2f}", f"{found['ratio']:.1f} times less"]
        said += [f"({found['kept_graph_ratio']:.1f})"]
    assert [words for words in said if words not in text] == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_file_says_where_it_was_measured(file):
    found = json.loads(file.read_text(encoding="utf-8"))
    assert {"spectrascope", "torch", "python"} <= set(found["versions"])
    assert found["device"]
    assert found["dtype"] == ("bfloat16" if file.stem == "large-network" else "float32")
    assert f"{file.name}" in (FOLDER / "README.md").read_text(encoding="utf-8")
    if file.stem in benchmarks.NETWORKS:
        assert found["threads"] == 1
        assert found["clock"] == "processor time"


def test_memory_of_a_large_network_was_foretold():
    found = json.loads((FOLDER / "large-network.json").read_text(encoding="utf-8"))
    assert found["parameters"] > 1e9
    assert found["weights_measured"] == 14
    assert 0.8 < found["foretold_bytes"] / found["peak_bytes"] < 1.2
    assert found["self_check"]["n_weights"] == 14


def test_the_least_samples_by_the_rule():
    script = runpy.run_path(str(FOLDER / "curvature_samples.py"))
    points = [
        {"n": 512, "m": m, "seed": seed, "step_width": width}
        for seed, widths in enumerate([(2.0, 1.05, 1.0), (2.4, 1.32, 1.2)])
        for m, width in zip((128, 256, 512), widths, strict=True)
    ]
    assert script["enough"](points) == pytest.approx({128: 2.0, 256: 1.075})
    assert script["sizes"](128, 600) == [128, 256, 512, 600]
