"""What a report says of the curvature that weights share, and who refuses to measure it, before any work."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from spectrascope.advice.advise import advise
from spectrascope.curvature.gauss_newton import GaussNewton
from spectrascope.errors import OptionError, ReportFormatError
from spectrascope.measure.across import require_joint_engine
from spectrascope.measure.division import Division
from spectrascope.measure.run import run_probe, run_share
from spectrascope.measure.run_folder import RunFolder
from spectrascope.numerics.across import joint_step
from spectrascope.records.across import NOT_ASKED_ACROSS, Across
from spectrascope.records.report import LayerReport, Report
from spectrascope.records.signal import GradientSource
from spectrascope.records.values import EngineName, Missing
from spectrascope.reports.json import report_from_json, report_to_json
from spectrascope.reports.refit import refit
from spectrascope.reports.render import Format, render
from tests.support.ranks import make_run

SMOOTH = {"dtype": "float64", "across_matrix": True}


@pytest.fixture(scope="module")
def smooth() -> Report:
    return run_probe(make_run("tangents", **SMOOTH))


def across_of(report: Report) -> Across:
    found = report.summary.across
    assert isinstance(found, Across), found
    return found


def test_the_numbers_are_read_off_the_matrix(smooth):
    found = across_of(smooth)
    rows = [row for row in smooth.layers if isinstance(row, LayerReport)]
    assert found.weights == tuple(row.info.name for row in rows)
    assert found.directions == tuple(len(row.measurement.sigma) for row in rows)
    assert (found.engine, found.exact) == (EngineName.TANGENT, True)
    matrix, sigma = np.array(found.matrix), np.concatenate([row.measurement.sigma for row in rows])
    assert found.gradient.joint == pytest.approx(sigma @ matrix @ sigma)
    assert found.orthogonal.joint == pytest.approx(matrix.sum())
    at, blocks = 0, []
    for row in rows:
        blocks.append(slice(at, at := at + len(row.measurement.sigma)))
        own = np.array(row.measurement.curvature_matrix)
        assert np.abs(matrix[blocks[-1], blocks[-1]] - own).max() <= 1e-10 * np.abs(own).max()
    assert found.residual <= 1e-10
    alone = [float(sigma[b] @ matrix[b, b] @ sigma[b]) for b in blocks]
    assert found.gradient.separate == pytest.approx(sum(alone))
    assert found.gradient.ratio == pytest.approx(found.gradient.joint / sum(alone))
    # Newton's length along each weight's gradient; then along the step of all of them.
    lengths = np.concatenate(
        [sigma[b] * (sigma[b] @ sigma[b]) / q for b, q in zip(blocks, alone, strict=True) if q > 0]
    )
    kept = np.concatenate([np.arange(b.start, b.stop) for b, q in zip(blocks, alone, strict=True) if q > 0])
    best = (sigma[kept] @ lengths) / (lengths @ matrix[np.ix_(kept, kept)] @ lengths)
    assert found.gradient.factor == pytest.approx(best)
    assert found.gradient.left_out == sum(q <= 0 for q in alone)
    norm = np.linalg.norm
    pairs = {
        (i, j): norm(matrix[a, b]) / (norm(matrix[a, a]) * norm(matrix[b, b])) ** 0.5
        for i, a in enumerate(blocks)
        for j, b in enumerate(blocks)
        if i < j
    }
    assert found.coupling == pytest.approx(max(pairs.values()))
    assert found.pair == tuple(found.weights[i] for i in max(pairs, key=lambda pair: pairs[pair]))
    inside = sum(norm(matrix[b, b]) ** 2 for b in blocks)
    assert found.off_block_mass == pytest.approx((1 - inside / norm(matrix) ** 2) ** 0.5)


def test_it_is_written_read_back_and_fitted_again(smooth):
    assert report_from_json(report_to_json(smooth)) == smooth
    assert refit(smooth, top_k=2).summary.across == smooth.summary.across
    broken = report_to_json(smooth).replace('"directions": [3, 3, 3]', '"directions": [3, 3]')
    with pytest.raises(ReportFormatError, match="3 weights with 2 numbers"):
        report_from_json(broken)


def test_it_is_said_in_words(smooth):
    text = render(smooth, Format.MARKDOWN)
    assert "Across weights: moving all 3 at once meets" in text
    assert "Gauss-Newton part" not in text
    swept = run_probe(make_run("class factors", across_weights=True))
    found = across_of(swept)
    assert (found.engine, found.exact) == (EngineName.GAUSS_NEWTON, False)
    assert found.matrix == Missing("not asked for: --across-matrix")
    assert "(between weights the Gauss-Newton part alone, an approximation)" in render(swept, Format.MARKDOWN)
    assert any(f"a common factor of {found.orthogonal.factor:.2g}" in note for note in advise(swept).notes)
    assert "Across weights" in render(swept, Format.HTML)


def test_only_where_it_is_asked_for():
    report = run_probe(make_run("class factors"))
    assert report.summary.across == NOT_ASKED_ACROSS
    assert "Across weights" not in render(report, Format.MARKDOWN)
    assert not any("common factor" in note for note in advise(report).notes)
    alone = run_probe(make_run("class factors", across_weights=True, layers=("0.*",)))
    assert alone.summary.across == Missing("one weight has nothing to share curvature with")


def test_exact_engines_agree_in_a_report(smooth):
    products = across_of(run_probe(make_run("tangents", engine=EngineName.DOUBLE_BACKPROP, **SMOOTH)))
    matrix = np.array(across_of(smooth).matrix)
    assert np.abs(np.array(products.matrix) - matrix).max() <= 1e-10 * np.abs(matrix).max()
    assert products.engine is EngineName.DOUBLE_BACKPROP


def test_a_momentum_is_no_slope_of_the_loss():
    generator = torch.Generator().manual_seed(0)
    run = make_run("tangents", gradient=GradientSource.MOMENTUM, **SMOOTH)
    momentum = {name: torch.randn(p.shape, generator=generator) for name, p in run.model.named_parameters()}
    report = run_probe(dataclasses.replace(run, momentum=momentum))
    found = across_of(report)
    slopes = np.concatenate([row.held_out.slopes for row in report.layers])
    assert (np.sign(slopes) < 0).any()  # along a momentum the loss may rise
    assert found.orthogonal == joint_step(found.matrix, found.directions, slopes, np.ones_like(slopes))
    sigma = np.concatenate([row.measurement.sigma for row in report.layers])
    assert found.gradient == joint_step(found.matrix, found.directions, slopes, sigma)


@pytest.mark.parametrize("kind", ["tangents", "class factors"])
def test_in_a_narrow_format(kind):
    narrow, wide = (
        across_of(run_probe(make_run(kind, dtype, across_weights=True))) for dtype in ("bfloat16", "float32")
    )
    assert narrow.gradient.ratio == pytest.approx(wide.gradient.ratio, rel=0.05)
    assert narrow.orthogonal.factor == pytest.approx(wide.orthogonal.factor, rel=0.1)


def test_a_matrix_that_contradicts_the_weights_is_not_reported(monkeypatch):
    right = GaussNewton.measure_joint
    monkeypatch.setattr(GaussNewton, "measure_joint", lambda *args, **kw: 1.1 * right(*args, **kw))
    found = run_probe(make_run("class factors", across_weights=True)).summary.across
    assert isinstance(found, Missing)
    assert "differ from what was measured weight by weight by 0.1" in found.reason


def test_which_engine_measures_across_weights():
    sweeps, tangents, products = EngineName.GAUSS_NEWTON, EngineName.TANGENT, EngineName.DOUBLE_BACKPROP
    assert require_joint_engine({sweeps}) is sweeps
    assert require_joint_engine({sweeps, tangents}) is tangents
    assert require_joint_engine({sweeps, tangents, products}) is products


@pytest.mark.parametrize("engine", [EngineName.FINITE_DIFFERENCE, EngineName.GAUSS_NEWTON_SKETCH])
@pytest.mark.parametrize("asked", ["across_weights", "across_matrix"])
def test_estimates_refuse_before_any_work(engine, asked, monkeypatch):
    monkeypatch.setattr("spectrascope.measure.run.prepare", lambda *_, **__: pytest.fail("began"))
    with pytest.raises(OptionError, match=f"{engine.value} measures weight by weight; use --engine auto, tangent or"):
        run_probe(make_run("class factors", engine=engine, **{asked: True}))


def test_a_shard_refuses_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr("spectrascope.measure.run.prepare", lambda *_, **__: pytest.fail("began"))
    run = make_run("class factors", across_weights=True)
    with pytest.raises(OptionError, match="leave it out with --shard"):
        run_share(run, Division(folder=RunFolder(tmp_path), shard=(0, 2)))


def test_a_record_without_a_second_weight_contradicts_itself(smooth):
    with pytest.raises(ValueError, match="1 weights"):
        dataclasses.replace(across_of(smooth), weights=("a",), directions=(3,))
    with pytest.raises(ValueError, match="not 8 × 8"):
        dataclasses.replace(across_of(smooth), directions=(3, 3, 2))
