"""From a report to an optimizer: which exponent fits each weight, how sure that is, and how much damping.

Reads records only, so a saved report is advised on without torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from spectrascope.advice.evidence import (
    USUAL_DAMPING,
    describe_exponent,
    find_damping,
    find_doubts,
    measure_scatter,
    rate_exponents,
    selection_allowance,
)
from spectrascope.errors import OptionError
from spectrascope.records.advice import (
    USUAL_EXPONENTS,
    Advice,
    BetaGroup,
    BetaSource,
    LayerAdvice,
    ParameterExponent,
    StepEfficiency,
    Treatment,
)
from spectrascope.records.report import LayerInfo, LayerReport, LayerRow, Report, SkippedLayer
from spectrascope.records.values import Interval, LayerKind, LayerRole, Missing, PowerFit, Task

__all__ = ["LARGEST_EXPONENT", "advise"]

LARGEST_EXPONENT = 3.0
"""No more is recommended: beyond it a step is made of the smallest resolved directions."""

MOMENTUM = 0.95
"""Of the optimizer the damping is for: SpectralNewton's default."""

_BLOCK = re.compile(r"\[[^\]]*\]$")
_NUMBER = re.compile(r"(?<![A-Za-z0-9_])\d+(?![A-Za-z0-9_])|(?<=layer)\d+(?=\.)")
_DEPTHS = ("early", "middle", "late")


def advise(report: Report, *, train_batch: int | None = None) -> Advice:
    """Recommend an exponent and a damping for every weight of a report.

    A layer's own beta is recommended where :func:`spectrascope.advice.evidence.find_doubts` has none. Else the
    median over the confident members of its family (the same name apart from block numbers), of its role, of its
    kind, of the network; if there are none, the paper's usual value. Embeddings, heads and what is no matrix go to
    AdamW, whatever was measured, as users of Muon do.

    The damping is the gradient's noise floor to the power beta: directions whose sigma is sampling noise are damped,
    those above are not.

    Args:
        report: measured, or read from a file.
        train_batch: samples per training step. Its gradient is noisier than the report's by √(n / train_batch), and
            momentum 0.95 averages that down by √((1 + 0.95) / (1 - 0.95)). The report's own batch if ``None``.

    Returns:
        The advice, one row per row of the report.

    Raises:
        OptionError: ``train_batch`` below 1.

    Cost: a few milliseconds per layer.
    Reference: MEASUREMENT section 8.
    """
    if train_batch is not None and train_batch < 1:
        raise OptionError(f"--train-batch {train_batch}: must be at least 1")
    candidates = [_consider(row, report) for row in report.layers]
    spectral = [c for c in candidates if c.treatment is Treatment.SPECTRAL]
    for position, candidate in enumerate(spectral):
        candidate.depth = _DEPTHS[min(2, 3 * position // len(spectral))]
    noise_scale = 1.0
    if train_batch is not None:
        averaged = train_batch * (1 + MOMENTUM) / (1 - MOMENTUM)
        noise_scale = math.sqrt(report.provenance.data.n / averaged)
    run = report.provenance
    n_terms = _count_terms(report)
    layers = tuple(_advise_layer(candidate, spectral, noise_scale, n_terms) for candidate in candidates)
    return Advice(
        model=run.model,
        data=run.data,
        versions=run.versions,
        command=run.command,
        top_k=report.options.top_k,
        train_batch=Missing("the measured batch itself") if train_batch is None else train_batch,
        layers=layers,
        groups=_groups(spectral, n_terms),
        parameters=_parameters(layers),
        adamw=tuple(
            layer.info.name for layer in layers if layer.treatment is Treatment.ADAMW and not layer.info.parametrized
        ),
        notes=_notes(report),
    )


@dataclass
class _Candidate:
    """A row on its way to an advice."""

    row: LayerRow
    treatment: Treatment
    reason: str
    doubts: tuple[str, ...]
    depth: str = ""

    @property
    def info(self) -> LayerInfo:
        return self.row.info

    @property
    def fit(self) -> PowerFit | Missing:
        return self.row.analysis.beta if isinstance(self.row, LayerReport) else Missing(self.row.reason)

    @property
    def is_confident(self) -> bool:
        return isinstance(self.fit, PowerFit) and not self.doubts


def _consider(row: LayerRow, report: Report) -> _Candidate:
    reason = _adamw_reason(row, report)
    if reason:
        return _Candidate(row, Treatment.ADAMW, reason, ())
    doubts = find_doubts(row) if isinstance(row, LayerReport) else (row.reason,)
    return _Candidate(row, Treatment.SPECTRAL, "", doubts)


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


def _own_exponent(candidate: _Candidate, n_terms: int) -> tuple[float, Interval] | None:
    """A trusted layer's beta and its interval."""
    if not (candidate.is_confident and isinstance(candidate.fit, PowerFit) and isinstance(candidate.row, LayerReport)):
        return None
    own = candidate.fit.interval
    more = selection_allowance(candidate.row, n_terms)
    return candidate.fit.value, Interval(own.low - more, own.high + more)


def _summarise(members: Sequence[_Candidate], by: str, name: str, n_terms: int) -> BetaGroup:
    """Median of the trusted, and the hull of their intervals: a group is no surer than any of its members."""
    trusted = [own for own in (_own_exponent(c, n_terms) for c in members) if own is not None]
    if not trusted:
        nothing = Missing(f"none of {len(members)} is to be trusted")
        return BetaGroup(by, name, len(members), 0, nothing, nothing, "")
    middle = median(value for value, _ in trusted)
    hull = Interval(min(own.low for _, own in trusted), max(own.high for _, own in trusted))
    return BetaGroup(by, name, len(members), len(trusted), middle, hull, describe_exponent(middle))


def _groups(spectral: Sequence[_Candidate], n_terms: int) -> tuple[BetaGroup, ...]:
    keys: list[tuple[str, _Key]] = [(source.value, key) for source, key in _SCOPES]
    keys.insert(3, ("depth", lambda c: c.depth))
    found = []
    for by, key in keys:
        members: dict[str, list[_Candidate]] = {}
        for candidate in spectral:
            members.setdefault(key(candidate), []).append(candidate)
        for name, group in members.items():
            if by != BetaSource.FAMILY.value or len(group) > 1:
                found.append(_summarise(group, by, name, n_terms))
    return tuple(found)


def _count_terms(report: Report) -> int:
    """Terms of the mean loss: samples, and for a language model every token of each."""
    run = report.provenance
    language = run.model.task in (Task.CAUSAL_LM, Task.MASKED_LM)
    return run.data.n * (run.data.input_shape[0] if language and run.data.input_shape else 1)


def _recommend(
    candidate: _Candidate, spectral: Sequence[_Candidate], n_terms: int
) -> tuple[float, Interval | Missing, BetaSource]:
    own = _own_exponent(candidate, n_terms)
    if own is not None:
        return *own, BetaSource.LAYER
    for source, key in _SCOPES:
        group = _summarise([c for c in spectral if key(c) == key(candidate)], source.value, "", n_terms)
        if not isinstance(group.beta, Missing):
            return group.beta, group.interval, source
    convolution = candidate.info.kind in (LayerKind.CONV, LayerKind.CONV_TRANSPOSE)
    usual = USUAL_EXPONENTS["convolution" if convolution else "matrix"]
    return usual, Missing("no layer of the network is to be trusted: the paper's usual value"), BetaSource.USUAL


def _advise_layer(
    candidate: _Candidate, spectral: Sequence[_Candidate], noise_scale: float, n_terms: int
) -> LayerAdvice:
    row = candidate.row
    nothing = Missing(candidate.reason or "stepped by AdamW")
    beta: float | Missing = nothing
    interval: Interval | Missing = nothing
    source: BetaSource | Missing = nothing
    damping: float | Missing = nothing
    relative: float | Missing = nothing
    damping_reason = meaning = ""
    if candidate.treatment is Treatment.SPECTRAL:
        found, interval, source = _recommend(candidate, spectral, n_terms)
        beta = min(max(found, 0.0), LARGEST_EXPONENT)
        meaning = describe_exponent(beta)
        damping, relative, damping_reason = find_damping(row, beta, noise_scale)
    measured: Missing | LayerReport = row if isinstance(row, LayerReport) else Missing(row.reason)
    efficiencies: tuple[StepEfficiency, ...] | Missing
    best: float | Missing
    if isinstance(measured, Missing):
        efficiencies = best = measured
    else:
        efficiencies, best = rate_exponents(measured, beta, damping)
    return LayerAdvice(
        info=row.info,
        treatment=candidate.treatment,
        reason=candidate.reason,
        beta=beta,
        interval=interval,
        source=source,
        doubts=candidate.doubts,
        meaning=meaning,
        damping=damping,
        relative_damping=relative,
        damping_reason=damping_reason,
        measured=candidate.fit,
        scatter=measured if isinstance(measured, Missing) else measure_scatter(measured),
        window=measured if isinstance(measured, Missing) else measured.analysis.window,
        n_above_noise=measured if isinstance(measured, Missing) else measured.analysis.n_above_noise,
        efficiencies=efficiencies,
        best_exponent=best,
    )


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
        damping = median(absolute) if absolute else USUAL_DAMPING
        found.append(ParameterExponent(name, round(beta, 3), damping, relative, layout))
    return tuple(found)


def _notes(report: Report) -> tuple[str, ...]:
    notes = list(report.provenance.notes)
    if any(_BLOCK.search(row.info.name) for row in report.layers if isinstance(row, LayerReport)):
        notes.append("blocks of a fused or stacked weight are stepped as one parameter, with the median of their β")
    if report.provenance.data.synthetic:
        notes.append("the data are synthetic: this advice says nothing about real data")
    return tuple(notes)
