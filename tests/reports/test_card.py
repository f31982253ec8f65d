"""A section for a Hub model card: what the Hub reads of it, and that it finds its own place again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from spectrascope.cli import main
from spectrascope.records.report import Report
from spectrascope.records.values import Missing
from spectrascope.reports.card import END, START, card_section, insert_section, model_index, new_card
from spectrascope.reports.json import report_to_json
from tests.support.gate_reports import network, with_signal


@pytest.fixture(scope="module")
def report() -> Report:
    return with_signal(network(1), 1)


def test_the_hub_reads_the_metadata(report: Report) -> None:
    pytest.importorskip("huggingface_hub")
    from huggingface_hub.repocard_data import model_index_to_eval_results

    head = new_card(report).split("---\n")[1]
    index = yaml.safe_load(head)["model-index"]
    assert index == [model_index(report)]
    _, results = model_index_to_eval_results(index)
    values = {result.metric_type: result.metric_value for result in results}
    signal = report.summary.signal
    assert values["step_exponent"] == round(signal.step_exponent.value, 4)
    assert values["n_resolved"] == signal.n_resolved
    assert values["beta"] == round(report.summary.overall.beta_median, 4)


def test_what_is_undetermined_is_no_result(report: Report) -> None:
    signal = replace(report.summary.signal, step_exponent=Missing("no weight"), null_beta_median=Missing("none"))
    found = model_index(replace(report, summary=replace(report.summary, signal=signal)))
    kinds = [metric["type"] for metric in found["results"][0]["metrics"]]
    assert "beta" in kinds
    assert not {"step_exponent", "null_beta"} & set(kinds)


def test_every_weight_has_a_line_and_no_folder_of_this_machine_is_told(report: Report) -> None:
    run = report.provenance
    here = replace(
        run, data=replace(run.data, id="folder:/home/me/secret"), model=replace(run.model, id="/home/me/a.pt")
    )
    text = new_card(replace(report, provenance=here))
    assert "/home" not in text
    assert "folder:secret" in text
    for row in report.layers:
        assert text.count(f"| `{row.info.name}` |") == 1


def test_the_section_replaces_itself(report: Report) -> None:
    card = "---\nlicense: mit\n---\n# My network\n\nText.\n"
    once = insert_section(card, report)
    assert once.startswith(card.rstrip())
    assert insert_section(once, report) == once
    moved = once + "\nMore text.\n"
    fewer = replace(report, layers=report.layers[:1])
    again = insert_section(moved, fewer)
    assert again == card.rstrip() + "\n\n" + card_section(fewer) + "\n\nMore text.\n"
    assert again.count(START) == again.count(END) == 1


def test_the_command(report: Report, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved, card = tmp_path / "r.json", tmp_path / "README.md"
    saved.write_text(report_to_json(report), encoding="utf-8")
    assert main(["card", str(saved)]) == 0
    assert capsys.readouterr().out == new_card(report) + "\n"
    assert main(["card", str(saved), "--into", str(card)]) == 0
    assert card.read_text(encoding="utf-8") == new_card(report) + "\n"
    assert main(["card", str(saved), "--into", str(card), "-o", "x.md"]) == 2
    assert "--into writes the card itself" in capsys.readouterr().err
    card.write_bytes(b"\xff\xfe")
    assert main(["card", str(saved), "--into", str(card)]) == 2
    assert "cannot read the card" in capsys.readouterr().err
    assert card.read_bytes() == b"\xff\xfe"
