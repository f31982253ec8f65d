"""A section for a model card of the Hugging Face Hub: metadata for its head, and a table for its text."""

from __future__ import annotations

import json
from typing import Any

from spectrascope.records.report import LayerReport, Report
from spectrascope.records.signal import StepExponent
from spectrascope.records.values import Missing, Task
from spectrascope.reports.fields import Field, named
from spectrascope.reports.markdown import escape
from spectrascope.reports.views.signal import say_signal

__all__ = ["END", "START", "card_section", "insert_section", "model_index", "new_card"]

START, END = "<!-- spectrascope: measured, do not edit -->", "<!-- spectrascope: end -->"
_COLUMNS = ("n_resolved", "step_exponent", "beta", "null_beta", "alpha_g", "alpha_h")
_TASKS = {
    Task.IMAGE_CLASSIFICATION: "image-classification",
    Task.SEQUENCE_CLASSIFICATION: "text-classification",
    Task.CAUSAL_LM: "text-generation",
    Task.MASKED_LM: "fill-mask",
}


def model_index(report: Report) -> dict[str, Any]:
    """The card's ``model-index``: numbers of the whole network as results on the data they were measured on.

    What is missing or undetermined is left out, since a result of the Hub has no place for a reason.
    """
    run, signal = report.provenance, report.summary.signal
    metrics: list[dict[str, Any]] = []

    def add(kind: str, name: str, value: float | Missing) -> None:
        if not isinstance(value, Missing):
            metrics.append({"type": kind, "name": name, "value": round(float(value), 4)})

    if not isinstance(signal, Missing):
        step = signal.step_exponent
        if isinstance(step, StepExponent) and step.determined:
            add("step_exponent", "step exponent on held-out samples", step.value)
        add("n_resolved", "gradient directions resolved", signal.n_resolved)
        add("null_beta", "curvature exponent of noise alone, median", signal.null_beta_median)
    add("beta", "curvature exponent as published, median", report.summary.overall.beta_median)
    add("loss", "loss on the measured samples", run.loss)
    add("accuracy", "accuracy on the measured samples", run.accuracy)
    return {
        "name": _public(run.model.id),
        "results": [
            {
                "task": {"type": _TASKS.get(run.model.task, "other")},
                "dataset": {"type": _public(run.data.id), "name": f"{_public(run.data.id)}, {run.data.n:,} samples"},
                "metrics": metrics,
            }
        ],
    }


def card_section(report: Report) -> str:
    """The section of the card's text, between two marks by which it is found again."""
    run, fields = report.provenance, [named(name) for name in _COLUMNS]
    rows = [row for row in report.layers if isinstance(row, LayerReport)]
    lines = [
        START,
        "## Curvature along gradient directions",
        "",
        escape(say_signal(report)),
        "",
        f"| weight | {' | '.join(escape(field.header) for field in fields)} |",
        "|---|" + "---:|" * len(fields),
        *(f"| `{row.info.name}` | {' | '.join(_cell(field, row) for field in fields)} |" for row in rows),
        "",
        f"Measured with spectrascope {run.versions.get('spectrascope', '')} on {run.data.n:,} samples of "
        f"{escape(_public(run.data.id))}. Step exponent: 0 gradient descent, 1 Muon, 2 Newton, on samples that did not "
        "choose the directions. β by the published definition; null β is what noise alone gives.",
        END,
    ]
    return "\n".join(lines)


def _public(name: str) -> str:
    """A model's or dataset's name without the folders of the machine it lay on.

    >>> _public("folder:/home/me/cifar10-test"), _public("hf:org/name"), _public("../run/ckpt.pt")
    ('folder:cifar10-test', 'hf:org/name', 'ckpt.pt')
    """
    kind, colon, place = name.rpartition(":")
    if kind == "hf":
        return name
    return f"{kind}{colon}{place.replace(chr(92), '/').rstrip('/').rpartition('/')[2]}"


def _cell(field: Field, row: LayerReport) -> str:
    text = field.text(row)
    return "–" if isinstance(text, Missing) else escape(" ".join(text.split()))


def insert_section(card: str, report: Report) -> str:
    """A card with this section in place of an earlier one, or at its end; its metadata stay as they are."""
    section = card_section(report)
    before, mark, rest = card.partition(START)
    if mark and END in rest:
        return before + section + rest.partition(END)[2]
    return f"{card.rstrip()}\n\n{section}\n" if card.strip() else f"{new_card(report)}\n"


def new_card(report: Report) -> str:
    """A whole card: metadata and section. JSON is YAML too, and needs no quoting of its own."""
    head = json.dumps([model_index(report)], ensure_ascii=False)
    return f"---\ntags: [spectrascope]\nmodel-index: {head}\n---\n\n{card_section(report)}"
