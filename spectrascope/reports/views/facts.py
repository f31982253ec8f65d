"""The header of a report: what was measured, on what, and how, as label and value."""

from __future__ import annotations

from spectrascope.records.report import DataInfo, ModelInfo, Provenance, Report
from spectrascope.records.values import EngineName, Missing
from spectrascope.reports.figures import format_count, format_percent, format_seconds

__all__ = [
    "describe_data",
    "describe_everything",
    "describe_model",
    "describe_precision",
    "describe_run",
    "list_engines",
]

_REFERENCES = {
    EngineName.GAUSS_NEWTON.value: "double backprop",
    EngineName.TANGENT.value: "double backprop",
    EngineName.DOUBLE_BACKPROP.value: "central differences of the gradient",
}
"""What each engine is compared with (MEASUREMENT section 5)."""

Facts = tuple[tuple[str, str], ...]


def describe_model(model: ModelInfo) -> Facts:
    """The network: id, architecture, where its weights are from."""
    parts = [model.id]
    if model.architecture != model.id:
        parts.append(model.architecture)
    parts += [f"{format_count(model.n_parameters, 'parameter')}", f"weights: {model.weights}"]
    if isinstance(model.sha256, str):
        parts.append(f"sha256 {model.sha256[:12]}")
    return (("model", ", ".join(parts)),)


def describe_data(data: DataInfo) -> Facts:
    """The samples: id, number, shape, preparation. Synthetic data says so first."""
    available = f" of {data.n_available:,}" if isinstance(data.n_available, int) else ""
    shape = "×".join(str(size) for size in data.input_shape)
    label = "SYNTHETIC noise, " if data.synthetic else ""
    text = f"{label}{data.id}, {data.n:,}{available} samples of {shape}, batch {data.digest[:12]}"
    facts = [("data", text)]
    if data.preprocessing:
        facts.append(("prepared", data.preprocessing))
    if data.label_order:
        facts.append(("labels", data.label_order))
    return tuple(facts)


def describe_run(run: Provenance) -> Facts:
    """The whole header of a measurement."""
    quality = f"loss {run.loss:.4g} ({run.loss_name})"
    if isinstance(run.accuracy, Missing):
        quality = f"accuracy not measured ({run.accuracy.reason}), {quality}"
    else:
        quality = f"accuracy {format_percent(run.accuracy)}, {quality}"
    machine = f"{run.device}, {run.dtype}, {format_count(run.threads, 'thread')}, micro-batch {run.micro_batch}"
    stages = ", ".join(f"{stage} {format_seconds(value)}" for stage, value in run.seconds.items())
    return (
        *describe_model(run.model),
        *describe_data(run.data),
        ("batch", quality),
        ("engine", f"{list_engines(run.engines)}; {_describe_check(run)}"),
        ("device", f"{machine}, seed {run.seed}"),
        *describe_precision(run),
        ("time", f"{format_seconds(sum(run.seconds.values()))} ({stages})" if stages else "not recorded"),
        *(("note", note) for note in run.notes),
    )


def describe_precision(run: Provenance) -> Facts:
    """How far the numbers are from float32's, where the network was measured in fewer digits."""
    found = run.precision
    if run.dtype in ("float32", "float64"):
        return ()
    if isinstance(found, Missing):
        return (("precision", f"{run.dtype}, an approximation whose error is not known: {found.reason}"),)
    h = f"h off by {format_percent(found.h_largest)} of a weight's largest at most"
    if not isinstance(found.h_median, Missing):
        h = f"h off by {format_percent(found.h_median)} (median), {format_percent(found.h_largest)} of the largest h"
    parts = [h]
    if not isinstance(found.beta, Missing):
        parts.append(f"β by up to {found.beta:.2g}")
    if not isinstance(found.step_exponent, Missing):
        parts.append(f"their step exponent by {found.step_exponent:.2g}")
    where = f"{format_count(found.n_pairs, 'pair')} of {format_count(found.n_weights, 'weight')}"
    return (("precision", f"{run.dtype}, an approximation: beside float32 {', '.join(parts)}, on {where}"),)


def describe_everything(report: Report) -> Facts:
    """The header, and what it takes to measure the same again."""
    run, options = report.provenance, report.options
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    sha = run.model.sha256
    return (
        *describe_run(run),
        ("directions", f"up to {options.top_k} per layer, fitted from {options.min_rank} on; {options.groups} groups"),
        ("command", run.command or "not recorded"),
        *(
            [("repeats", f"to the last digit with --micro-batch {run.micro_batch}, which auto chose by timing")]
            if options.micro_batch == "auto"
            else []
        ),
        ("created", run.created),
        ("versions", versions),
        ("checkpoint", f"sha256 {sha}" if isinstance(sha, str) else sha.reason),
        ("batch digest", f"sha256 {run.data.digest}"),
        ("schema version", str(report.schema_version)),
    )


def list_engines(engines: dict[str, int]) -> str:
    """Which engine measured how many layers."""
    return ", ".join(f"{name} on {format_count(n, 'layer')}" for name, n in engines.items()) or "none used"


def _describe_check(run: Provenance) -> str:
    check = run.self_check
    if isinstance(check, Missing):
        return f"not self-checked ({check.reason})"
    references = " and ".join(dict.fromkeys(words for engine, words in _REFERENCES.items() if engine in run.engines))
    return (
        f"self-check against {references or 'a reference'} {check.residual:.1e} "
        f"(tolerance {check.tolerance:.0e}, {format_count(check.n_pairs, 'pair')}"
        + (")" if isinstance(check.n_weights, Missing) else f" of {format_count(check.n_weights, 'weight')})")
    )
