"""Two runs of one measurement agree to the last digit where the micro-batch is given."""

from __future__ import annotations

from dataclasses import replace

import spectrascope
from spectrascope.reports import report_to_json
from spectrascope.reports.views.facts import describe_everything


def test_a_given_micro_batch_makes_runs_repeat() -> None:
    one, other = (
        spectrascope.probe("digits-cnn", num_samples=64, top_k=4, micro_batch=16, on_progress=False) for _ in range(2)
    )
    again = replace(other.provenance, created=one.provenance.created, seconds=one.provenance.seconds)
    assert report_to_json(one) == report_to_json(replace(other, provenance=again))
    assert "repeats" not in dict(describe_everything(one))


def test_a_report_says_which_micro_batch_was_chosen() -> None:
    report = spectrascope.probe("digits-cnn", num_samples=64, top_k=4, estimate="published", on_progress=False)
    assert f"--micro-batch {report.provenance.micro_batch}," in dict(describe_everything(report))["repeats"]
