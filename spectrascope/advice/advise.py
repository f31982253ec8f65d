"""From a report to an optimizer: which exponent each weight's held-out samples bear out, and how much damping.

Reads records only, so a saved report is advised on without torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from spectrascope.advice.evidence import (
    apply_spectral_rule,
    describe_exponent,
    find_damping,
    find_doubts,
    has_enough_directions,
    rate_exponents,
    schatten4,
    training_sigma,
)
from spectrascope.errors import OptionError
from spectrascope.numerics.steps import pool_step_exponents
from spectrascope.records.across import Across
from spectrascope.records.advice import (
    Advice,
    BetaGroup,
    BetaSource,
    LayerAdvice,
    ParameterExponent,
    Treatment,
)
from spectrascope.records.report import LayerInfo, LayerReport, LayerRow, Report, SkippedLayer
from spectrascope.records.signal import Estimate, NullDraws, SamplesNeeded, StepExponent
from spectrascope.records.values import LayerKind, LayerRole, Missing, Task
from spectrascope.reports.figures import format_count, format_roughly
from spectrascope.reports.views.signal import say_signal

__all__ = ["LARGEST_EXPONENT", "advise"]

LARGEST_EXPONENT = 3.0
"""No more is recommended: beyond it a step is made of the smallest resolved directions."""

_BLOCK = re.compile(r"\[[^\]]*\]$")
_NUMBER = re.compile(r"(?<![A-Za-z0-9_])\d+(?![A-Za-z0-9_])|(?<=layer)\d+(?=\.)")
_DEPTHS = ("early", "middle", "late")


def advise(report: Report, *, train_batch: int | None = None, momentum: float = 0.0) -> Advice:
    """Recommend an exponent and a damping for every weight of a report whose held-out samples determine one.

    A weight's own step exponent is recommended where it is determined. Else the one exponent for all weights of its
    family together (the same name apart from block numbers), of its role, of its kind, of the network: the first that
    is determined. Else it is undetermined; no exponent is ever taken from the samples that chose the directions, nor
    from another network. Embeddings, heads and what is no matrix go to AdamW, whatever was measured, as users of Muon
    do.

    The damping is the one whose step lowers the held-out loss most at that exponent, for a gradient as noisy as
    training's: the report's averages n samples, training's ``train_batch`` · (1 + momentum) / (1 - momentum).

    Args:
        report: measured, or read from a file.
        train_batch: samples per training step. The report's own number, and no momentum, if ``None``.
        momentum: of the optimizer, 0 or more and below 1; goes with ``train_batch``.

    Returns:
        The advice, one row per row of the report.

    Raises:
        OptionError: ``train_batch`` below 1, or ``momentum`` not in [0, 1) or without ``train_batch``.

    Cost: some ten milliseconds per layer.
    Reference: SIGNAL sections 2 and 6, MEASUREMENT section 8.
    """
    if train_batch is not None and train_batch < 1:
        raise OptionError(f"--train-batch {train_batch}: must be at least 1")
    if not 0 <= momentum < 1:
        raise OptionError(f"--momentum {momentum:g}: must be at least 0 and below 1")
    if momentum and train_batch is None:
        raise OptionError("--momentum goes with --train-batch: it says how many samples a step averages")
    run = report.provenance
    candidates = [_consider(row, report) for row in report.layers]
    spectral = [c for c in candidates if not c.reason]
    for position, candidate in enumerate(spectral):
        candidate.depth = _DEPTHS[min(2, 3 * position // len(spectral))]
    noise = 1.0 if train_batch is None else run.data.n * (1 - momentum) / (train_batch * (1 + momentum))
    pools = _Pools(spectral)
    layers = tuple(_advise_layer(candidate, pools, noise, report) for candidate in candidates)
    parameters = _parameters(layers)
    named = {parameter.name for parameter in parameters}
    left = [_BLOCK.sub("", layer.info.name) for layer in layers if layer.treatment is Treatment.UNDETERMINED]
    return Advice(
        model=run.model,
        data=run.data,
        versions=run.versions,
        command=run.command,
        known=say_signal(report),
        top_k=report.options.top_k,
        train_batch=Missing("steps on as many samples as were measured") if train_batch is None else train_batch,
        momentum=momentum,
        layers=layers,
        groups=_groups(spectral, pools),
        parameters=parameters,
        undetermined=tuple(name for name in dict.fromkeys(left) if name not in named),
        adamw=tuple(
            layer.info.name for layer in layers if layer.treatment is Treatment.ADAMW and not layer.info.parametrized
        ),
        notes=_notes(report),
    )


@dataclass
class _Candidate:
    """A row on its way to an advice; ``reason`` says why it is AdamW's, if it is."""

    row: LayerRow
    reason: str
    doubts: tuple[str, ...]
    depth: str = ""

    @property
    def info(self) -> LayerInfo:
        return self.row.info

    @property
    def own(self) -> StepExponent | Missing:
        """The weight's own step exponent, determined or not."""
        if not isinstance(self.row, LayerReport):
            return Missing(self.row.reason)
        return self.row.held_out if isinstance(self.row.held_out, Missing) else self.row.held_out.step_exponent

    @property
    def is_confident(self) -> bool:
        return isinstance(self.own, StepExponent) and not self.doubts


def _consider(row: LayerRow, report: Report) -> _Candidate:
    reason = _adamw_reason(row, report)
    if reason:
        return _Candidate(row, reason, ())
    return _Candidate(row, "", find_doubts(row) if isinstance(row, LayerReport) else (row.reason,))


def _adamw_reason(row: LayerRow, report: Report) -> str:
    """Why a weight should be left to AdamW; empty if it should not."""
    info, data = row.info, report.provenance.data
    if info.parametrized:
        return "no parameter: parametrized, computed from others"
    if info.role is LayerRole.UNEMBEDDING:
        return "the head of a language model, tied to its embedding" if info.tied_names else "a language model's head"
    if info.role is LayerRole.EMBEDDING or info.kind is LayerKind.EMBEDDING:
        return "an embedding: rows that are looked up, not a map between spaces"
    if info.role in (LayerRole.BIAS, LayerRole.NORM) or min(info.shape) <= 1:
        return "a vector: it has no spectrum to step by"
    if info.role is LayerRole.OTHER and isinstance(row, SkippedLayer):
        return f"not seen as a matrix: {row.reason}"
    classes = data.n_classes
    language = report.provenance.model.task in (Task.CAUSAL_LM, Task.MASKED_LM)
    if info.kind is LayerKind.LINEAR and not language and classes == info.shape[0] and _is_last_matrix(row, report):
        return "the classifier's head: one row per class"
    return ""


def _is_last_matrix(row: LayerRow, report: Report) -> bool:
    matrices = [other for other in report.layers if other.info.kind in (LayerKind.LINEAR, LayerKind.CONV)]
    return matrices[-1] is row


_Key = Callable[[_Candidate], str]


def _family(candidate: _Candidate) -> str:
    """The name apart from block numbers, ``transformer.h.*.mlp.c_fc.weight``."""
    return _NUMBER.sub("*", candidate.info.name)


_SCOPES: tuple[tuple[BetaSource, _Key], ...] = (
    (BetaSource.FAMILY, _family),
    (BetaSource.ROLE, lambda c: c.info.role.value),
    (BetaSource.KIND, lambda c: c.info.kind.value),
    (BetaSource.NETWORK, lambda _: "all"),
)


class _Pools:
    """Exponents of groups, each found once: of all measured members together, determined or not."""

    def __init__(self, spectral: Sequence[_Candidate]) -> None:
        self.spectral = spectral
        self.found: dict[tuple[int, ...], StepExponent | Missing] = {}

    def members(self, key: _Key, name: str) -> list[_Candidate]:
        return [c for c in self.spectral if key(c) == name]

    def pool(self, members: Sequence[_Candidate]) -> StepExponent | Missing:
        rows = _pooled_rows(members)
        place = tuple(id(row) for row in rows)
        if place not in self.found:
            self.found[place] = pool_step_exponents(rows)
        return self.found[place]


def _pooled_rows(members: Sequence[_Candidate]) -> list[LayerReport]:
    return [c.row for c in members if isinstance(c.row, LayerReport) and has_enough_directions(c.row)]


def _groups(spectral: Sequence[_Candidate], pools: _Pools) -> tuple[BetaGroup, ...]:
    keys: list[tuple[str, _Key]] = [(source.value, key) for source, key in _SCOPES]
    keys.insert(3, ("depth", lambda c: c.depth))
    found = []
    for by, key in keys:
        for name in dict.fromkeys(map(key, spectral)):
            members = pools.members(key, name)
            if by != BetaSource.FAMILY.value or len(members) > 1:
                found.append(_group(by, name, members, pools.pool(members)))
    return tuple(found)


def _group(by: str, name: str, members: Sequence[_Candidate], pooled: StepExponent | Missing) -> BetaGroup:
    confident = sum(c.is_confident for c in members)
    if isinstance(pooled, Missing) or not pooled.determined:
        nothing = Missing(pooled.reason)
        return BetaGroup(by, name, len(members), confident, nothing, nothing, "")
    return BetaGroup(by, name, len(members), confident, pooled.value, pooled.interval, describe_exponent(pooled.value))


def _recommend(candidate: _Candidate, pools: _Pools) -> tuple[StepExponent, BetaSource, list[LayerReport]] | None:
    """The exponent, where it is from, and the weights that determine it."""
    own = candidate.own
    if candidate.is_confident and isinstance(own, StepExponent) and isinstance(candidate.row, LayerReport):
        return own, BetaSource.LAYER, [candidate.row]
    for source, key in _SCOPES:
        members = pools.members(key, key(candidate))
        pooled = pools.pool(members)
        if isinstance(pooled, StepExponent) and pooled.determined:
            return pooled, source, _pooled_rows(members)
    return None


def _advise_layer(candidate: _Candidate, pools: _Pools, noise: float, report: Report) -> LayerAdvice:
    row = candidate.row
    measured: Missing | LayerReport = row if isinstance(row, LayerReport) else Missing(row.reason)
    needed = measured if isinstance(measured, Missing) else measured.analysis.samples_needed
    found = None if candidate.reason else _recommend(candidate, pools)
    treatment = Treatment.ADAMW if candidate.reason else Treatment.SPECTRAL if found else Treatment.UNDETERMINED
    nothing = Missing(candidate.reason or _undetermined(candidate, report, needed))
    beta: float | Missing = nothing
    damping: float | Missing = nothing
    relative: float | Missing = nothing
    damping_reason = ""
    if found:
        beta = min(max(found[0].value, 0.0), LARGEST_EXPONENT)
        relative, damping_reason = find_damping(found[2], beta, noise)
        if isinstance(measured, LayerReport):
            damping = relative * schatten4(training_sigma(measured, noise)) ** 2
        else:
            damping = measured
    null = measured if isinstance(measured, Missing) else measured.null
    return LayerAdvice(
        info=row.info,
        treatment=treatment,
        reason=candidate.reason or ("" if found else nothing.reason),
        beta=beta,
        interval=found[0].interval if found else nothing,
        source=found[1] if found else nothing,
        doubts=candidate.doubts,
        meaning="" if isinstance(beta, Missing) else describe_exponent(beta),
        damping=damping,
        relative_damping=relative,
        damping_reason=damping_reason,
        own=candidate.own,
        measured=measured if isinstance(measured, Missing) else measured.analysis.beta,
        null=null.beta if isinstance(null, NullDraws) else null,
        window=measured if isinstance(measured, Missing) else measured.analysis.window,
        n_signal=measured if isinstance(measured, Missing) else measured.analysis.n_signal,
        n_resolved=needed.n_resolved if isinstance(needed, SamplesNeeded) else needed,
        samples_needed=needed.for_4 if isinstance(needed, SamplesNeeded) else needed,
        efficiencies=measured if isinstance(measured, Missing) else rate_exponents(measured, beta, damping),
        spectral_rule=measured if isinstance(measured, Missing) else apply_spectral_rule(measured),
    )


def _undetermined(candidate: _Candidate, report: Report, needed: SamplesNeeded | Missing) -> str:
    """Why a weight gets no exponent, and what would help."""
    row = candidate.row
    if isinstance(row, SkippedLayer):
        return f"undetermined: not measured ({row.reason})"
    if isinstance(row.held_out, Missing):
        if report.options.estimate is Estimate.PUBLISHED:
            return "undetermined: --estimate published holds no samples out; measure again without it"
        return f"undetermined: {row.held_out.reason}"
    words = f"undetermined at {format_count(report.provenance.data.n, 'sample')}"
    if isinstance(needed, SamplesNeeded) and not isinstance(needed.for_4, Missing) and needed.n_resolved < 4:
        return f"{words}; about {format_roughly(needed.for_4)} needed"
    return f"{words}; how many are needed is not known"


def _parameters(layers: Sequence[LayerAdvice]) -> tuple[ParameterExponent, ...]:
    """One entry per parameter: the median over blocks of a fused or stacked weight."""
    blocks: dict[str, list[LayerAdvice]] = {}
    for layer in layers:
        if layer.treatment is Treatment.SPECTRAL:
            blocks.setdefault(_BLOCK.sub("", layer.info.name), []).append(layer)
    found = []
    for name, members in blocks.items():
        info = members[0].info
        stacked = info.role is LayerRole.EXPERT and len(info.stored_shape) == 3
        layout = "stacked" if stacked else "conv_transpose" if info.kind is LayerKind.CONV_TRANSPOSE else "flat"
        beta = median(m.beta for m in members if not isinstance(m.beta, Missing))
        relative = median(m.relative_damping for m in members if not isinstance(m.relative_damping, Missing))
        absolute = [m.damping for m in members if not isinstance(m.damping, Missing)]
        damping = median(absolute) if absolute else relative  # never measured: as if its gradient were of norm 1
        found.append(ParameterExponent(name, round(beta, 3), damping, relative, layout))
    return tuple(found)


def _notes(report: Report) -> tuple[str, ...]:
    notes = list(report.provenance.notes)
    if any(_BLOCK.search(row.info.name) for row in report.layers if isinstance(row, LayerReport)):
        notes.append("blocks of a fused or stacked weight are stepped as one parameter, with the median of their β")
    if report.provenance.data.synthetic:
        notes.append("the data are synthetic: this advice says nothing about real data")
    across = report.summary.across
    if isinstance(across, Across) and not isinstance(factor := across.orthogonal.factor, Missing):
        part = "" if across.exact else ", by the Gauss-Newton part of the curvature between weights"
        notes.append(
            f"where all weights step at once, learning rates that suit each weight alone want a common factor of "
            f"{factor:.2g} (orthogonalised steps{part})"
        )
    return tuple(notes)
