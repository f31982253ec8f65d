"""A dry run as a document."""

from __future__ import annotations

from spectrascope.records.inspection import CostEstimate, InspectedWeight, Inspection, MemoryNeed, TimeGuess
from spectrascope.records.values import ALL_SAMPLES, LayerRole, Missing
from spectrascope.reports.figures import format_bytes, format_count, format_large, format_span
from spectrascope.reports.views.document import DASH, Column, Document, Footnotes, Row, Sheet, Tone
from spectrascope.reports.views.facts import describe_model

__all__ = ["build_inspection"]


def build_inspection(inspection: Inspection) -> Document:
    """Every weight of two or more dimensions with its engine, and the estimated cost."""
    shown = [row for row in inspection.weights if not _is_vector(row)]
    how = "names and shapes only" if inspection.loaded == "headers" else "the weights themselves"
    sample = inspection.inputs if isinstance(inspection.inputs, str) else f"not known ({inspection.inputs.reason})"
    return Document(
        title="spectrascope: what probe would measure",
        facts=(
            *describe_model(inspection.model),
            ("read", how),
            ("sample", sample),
            ("cost", _describe_cost(inspection.cost, inspection.options.num_samples)),
            *_describe_time(inspection.cost.time),
            *_describe_memory(inspection.cost.memory),
            *(("note", note) for note in inspection.notes),
        ),
        sheets=(_build_sheet(shown, len(inspection.weights) - len(shown)),),
        closing=(_bottom_line(inspection, len(inspection.weights) - len(shown)),),
    )


def _bottom_line(inspection: Inspection, n_vectors: int) -> tuple[str, Tone]:
    time, need = inspection.cost.time, inspection.cost.memory
    lasting = "" if isinstance(time, Missing) else f" in about {format_span(time.total_seconds)}"
    vectors = "all" if n_vectors == inspection.n_skipped else n_vectors
    skipped = f"{inspection.n_skipped} skipped" + (f", {vectors} of them vectors" if n_vectors else "")
    fits = ", which does not fit" if need.fits is False else ""
    text = (
        f"{format_count(inspection.n_measured, 'weight')} would be measured{lasting} and about "
        f"{format_bytes(need.total_bytes)} of memory{fits}; {skipped}. Costs are estimates."
    )
    return text, Tone.WARNING if fits else Tone.PLAIN


def _is_vector(row: InspectedWeight) -> bool:
    return not row.measured and len(row.info.stored_shape) < 2


def _describe_cost(cost: CostEstimate, num_samples: int) -> str:
    if isinstance(cost.total_passes, Missing):
        return f"not estimated ({cost.total_passes.reason})"
    parts = []
    for value, what in (
        (cost.gradient_passes, "gradient"),
        (cost.sweep_passes, "sweeps"),
        (cost.tangent_passes, "tangents"),
        (cost.product_passes, "products"),
        (cost.estimate_passes, "estimates"),
    ):
        if not isinstance(value, Missing) and value:
            parts.append(f"{what} {value:,.0f}")
    samples = "all samples, however many" if num_samples >= ALL_SAMPLES else f"{num_samples:,} samples"
    text = f"about {cost.total_passes:,.0f} forward passes over {samples} ({', '.join(parts)})"
    if isinstance(cost.flops_per_sample, Missing) or isinstance(cost.total_flops, Missing):
        return text
    return f"{text}, {format_large(cost.total_flops)}FLOP at {format_large(cost.flops_per_sample)}FLOP per sample"


def _describe_time(time: TimeGuess | Missing) -> list[tuple[str, str]]:
    if isinstance(time, Missing):
        return []
    threads = "" if isinstance(time.threads, Missing) else f", {format_count(time.threads, 'thread')}"
    where = f"{time.device}{threads}: {format_large(time.flops_per_second)}FLOP/s"
    lines = [("time", f"about {format_span(time.total_seconds)}, a guess from {time.basis} ({where})")]
    if time.helps:
        lines.append(("sooner", ", ".join(f"{h.option} {format_span(h.left)}" for h in time.helps)))
    return lines


def _describe_memory(need: MemoryNeed) -> list[tuple[str, str]]:
    tangents = 0 if isinstance(need.tangent_bytes, Missing) else need.tangent_bytes
    parts = {
        "weights": need.weight_bytes,
        "a copy of them": need.copy_bytes,
        "gradients": need.gradient_bytes,
        "directions": need.direction_bytes,
        "a sample's pass": tangents,
        "copies to check by": need.check_bytes,
        "the program": need.process_bytes,
    }
    listed = ", ".join(f"{what} {format_bytes(n)}" for what, n in parts.items() if n)
    text = f"about {format_bytes(need.total_bytes)} at a time ({listed})"
    if isinstance(need.available_bytes, Missing):
        return [("memory", text)]
    free = f"{format_bytes(need.available_bytes)} free on {need.device}"
    if need.fits is True:
        return [("memory", f"{text} of {free}")]
    lines = [("memory", f"does not fit: {text}, and {free}")]
    left = ", ".join(f"{h.option} {format_bytes(int(h.left))}" for h in need.helps)
    enough = any(h.left <= need.available_bytes for h in need.helps)
    lines.append(("less", left if enough else f"{left + '; ' if left else ''}no option is enough on this device"))
    return lines


def _build_sheet(rows: list[InspectedWeight], n_vectors: int) -> Sheet:
    notes = Footnotes()
    columns = (
        Column("weight", right=False),
        Column("kind", right=False, drop_order=3),
        Column("role", right=False, drop_order=2),
        Column("m × n"),
        Column("stored", drop_order=5),
        Column("K", drop_order=1),
        Column("engine", right=False),
    )
    vectors = f"{format_count(n_vectors, 'vector')} (biases, gains of normalisations) not listed."
    hidden = (vectors,) if n_vectors else ()
    lines = tuple(_line(row, notes) for row in rows)
    return Sheet("Weights", columns, lines, (*notes.lines(), *hidden))


def _line(row: InspectedWeight, notes: Footnotes) -> Row:
    info = row.info
    m, n = info.shape
    name = info.name if not info.tied_names else f"{info.name} = {', '.join(info.tied_names)}"
    role = info.role.value if info.role is not LayerRole.OTHER else DASH
    head = (name, info.kind.value, f"{role}, frozen" if info.frozen else role, f"{m}×{n}")
    stored = "×".join(str(size) for size in info.stored_shape) or DASH
    if not row.measured:
        return Row((*head, stored, DASH, notes.mark("skipped", row.reason)), Tone.QUIET)
    if isinstance(row.engine, Missing):
        engine = notes.missing(row.engine)
    else:
        engine = notes.mark(row.engine.value, row.engine_reason)
    return Row((*head, stored, str(row.directions), engine))
