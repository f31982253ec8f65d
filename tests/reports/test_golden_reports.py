"""Reports of schema version 1 stay readable: two files as releases wrote them, never written again.

``report-v1-first-release.json`` comes from the first release (commit bf13b84), before layers said whether they are
frozen; ``report-v1.json`` from the release that brought the gate. Both: ``probe digits-cnn --num-samples 256 --top-k 6
--groups 4 --exclude 'conv3*'``.
"""

import hashlib
import json
from pathlib import Path

import pytest

from spectrascope.cli import main
from spectrascope.gating import compare, default_policy, judge
from spectrascope.records.report import LayerReport
from spectrascope.records.values import LayerStatus, Missing, Task
from spectrascope.records.verdict import Outcome
from spectrascope.reports import Format, report_from_json, report_to_json
from spectrascope.reports.read import read_report
from spectrascope.reports.refit import refit

GOLDEN = Path(__file__).parents[1] / "golden"
FILES = {
    "report-v1-first-release.json": "2367f7e9f398ec99",
    "report-v1.json": "9fa4369568d2d3b8",
}


@pytest.mark.parametrize("name", FILES)
def test_the_files_are_frozen(name: str) -> None:
    assert hashlib.sha256((GOLDEN / name).read_bytes()).hexdigest()[:16] == FILES[name]


@pytest.mark.parametrize("name", FILES)
def test_numbers_come_back(name: str) -> None:
    report = read_report(GOLDEN / name)
    assert report.schema_version == 1
    assert [(row.info.name, row.status) for row in report.layers] == [
        ("conv1.weight", LayerStatus.OK),
        ("conv2.weight", LayerStatus.OK),
        ("conv3.weight", LayerStatus.SKIPPED),
        ("fc1.weight", LayerStatus.OK),
        ("fc2.weight", LayerStatus.OK),
    ]
    first = report.layers[0]
    assert isinstance(first, LayerReport)
    assert first.analysis.beta.value == pytest.approx(2.10834, abs=1e-5)
    assert first.analysis.alpha_g.value == pytest.approx(0.87790, abs=1e-5)
    assert first.analysis.alpha_h.value == pytest.approx(1.97712, abs=1e-5)
    assert first.analysis.window == (1, 6)
    assert isinstance(first.analysis.beta_quartiles, Missing)
    assert len(first.measurement.group_h) == 4
    assert first.measurement.exact
    assert report.provenance.data.n == 256
    assert report.summary.n_skipped == 1


@pytest.mark.parametrize("name", FILES)
def test_every_number_of_the_file_survives(name: str) -> None:
    """What an old file says, the release that reads it writes again; keys that came later are added, none is lost."""
    text = (GOLDEN / name).read_text()

    def require_within(old: object, new: object, place: str) -> None:
        if isinstance(old, dict):
            for key, value in old.items():
                assert key in new, f"{place}.{key}"
                require_within(value, new[key], f"{place}.{key}")
        elif isinstance(old, list):
            assert len(old) == len(new), place
            for index, (one, other) in enumerate(zip(old, new, strict=True)):
                require_within(one, other, f"{place}[{index}]")
        elif place == "report.options.self_check":
            assert (old, new) == (True, "sampled")
        else:
            assert old == new, place

    require_within(json.loads(text), json.loads(report_to_json(report_from_json(text))), "report")


def test_what_came_later_has_its_default() -> None:
    report = read_report(GOLDEN / "report-v1-first-release.json")
    assert report.provenance.model.task is Task.UNKNOWN
    assert report.options.split_fused
    assert not report.layers[0].info.frozen


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("form", list(Format))
def test_they_can_be_shown(name: str, form: Format, capsys) -> None:
    assert main(["show", str(GOLDEN / name), "--format", form.value]) == 0
    assert ("conv3" if form is Format.LATEX else "conv3.weight") in capsys.readouterr().out


def test_they_can_be_fitted_compared_and_gated() -> None:
    old, new = (read_report(GOLDEN / name) for name in FILES)
    assert refit(old, top_k=5).layers[0].analysis.window == (1, 5)
    assert judge(new, old, default_policy()).outcome is Outcome.PASS
    assert compare(old, new).changes == ()
