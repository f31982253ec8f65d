"""Measure the curvature that weights share: one more pass along the published directions of all of them at once."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from spectrascope.curvature.choose import engine_named, make_engine
from spectrascope.curvature.engine import JointForm, Target, UnsupportedOperationError
from spectrascope.errors import OptionError, UnsupportedModelError
from spectrascope.measure.asked import memory_asked_for
from spectrascope.measure.division import Division
from spectrascope.measure.prepare import Ready
from spectrascope.measure.stages import Measured, deal_batch, forced_micro_batch
from spectrascope.numerics.across import block_norms, joint_step, largest_pair
from spectrascope.records.across import NOT_ASKED_ACROSS, Across
from spectrascope.records.report import ProbeOptions
from spectrascope.records.signal import GradientSource, HeldOut
from spectrascope.records.values import EngineName, Missing
from spectrascope.text import first_line
from spectrascope.workload import Run

__all__ = ["asks_across", "measure_across", "refuse_across", "require_joint_engine"]


def require_joint_engine(engines: Collection[EngineName]) -> EngineName:
    """The engine that measures across weights which these measure one by one.

    Class factors where they measure all of them, products where they measure any, else tangents.

    Raises:
        OptionError: one of them only estimates.
    """
    for name in engines:
        if name is not EngineName.AUTO and engine_named(name).joint is None:
            raise OptionError(
                f"--across-weights: {name.value} measures weight by weight; use --engine auto, tangent or "
                "double-backprop, which measure across weights"
            )
    if all(name is EngineName.GAUSS_NEWTON for name in engines):
        return EngineName.GAUSS_NEWTON
    return EngineName.DOUBLE_BACKPROP if EngineName.DOUBLE_BACKPROP in engines else EngineName.TANGENT


def measure_across(ready: Ready, found: Measured, run: Run, division: Division) -> Across | Missing:
    """Measure M across all weights that were measured, on the samples on which their curvature was.

    Ranks share the sample groups, whose sums are added in the order of groups.

    Args:
        ready: the network, held still.
        found: what was measured of each weight.
        run: what was asked for.
        division: with which other processes.

    Returns:
        What weights share, or why it could not be measured.

    Raises:
        OptionError: an engine that measured a weight cannot.
    """
    options, ranks = run.options, division.ranks
    if not asks_across(options):
        return NOT_ASKED_ACROSS
    names = ranks.first(lambda: [t.layer.name for t in found.targets])
    targets = [target for target in found.targets if target.layer.name in names]
    if len(targets) < 2:
        return Missing("one weight has nothing to share curvature with")
    measured_by = ranks.first(lambda: {curvature.engine for curvature in found.curvatures})
    engine = require_joint_engine(measured_by)
    deal = deal_batch(ready.workload, ready.choices, options)
    pieces, workload = deal.pieces, ready.workload
    share = ranks.share(len(pieces))
    micro_batch, memory = forced_micro_batch(options), memory_asked_for(options)

    def work() -> dict[int, Tensor]:
        done: dict[int, Tensor] = {}
        for number in share:
            part = replace(workload, source=deal.source.pick(pieces[number].places))
            run.on_progress("across weights", len(done), len(share))
            done[number] = make_engine(engine, micro_batch, memory=memory).measure_joint(part, targets)
        return done

    with run.clock.stage("across weights"):
        try:
            parts = {number: part for found in ranks.each(work) for number, part in found.items()}
        except (UnsupportedOperationError, UnsupportedModelError) as error:
            return Missing(f"{engine.value} cannot follow the network across weights: {first_line(error)}")
    sizes = [len(piece.places) for piece in pieces]
    matrix = sum((parts[i] * size for i, size in enumerate(sizes)), torch.zeros(())) / sum(sizes)
    return ranks.first(lambda: _read(matrix, targets, found, engine, workload.dtype, options))


def asks_across(options: ProbeOptions) -> bool:
    """Whether curvature across weights is wanted."""
    return options.across_weights or options.across_matrix


def _read(
    matrix: Tensor,
    targets: Sequence[Target],
    found: Measured,
    engine: EngineName,
    dtype: torch.dtype,
    options: ProbeOptions,
) -> Across | Missing:
    if not bool(torch.isfinite(matrix).all()):
        return Missing("the curvature across weights holds NaN or infinity")
    sizes = [target.directions.k for target in targets]
    residual = _differ(matrix, sizes, found)
    tolerance = min(0.1, max(1e4 * torch.finfo(dtype).eps, 1e-9))
    if not isinstance(residual, Missing) and not residual <= tolerance:
        return Missing(
            f"its diagonal blocks differ from what was measured weight by weight by {residual:.2g} of the largest "
            f"entry (tolerance {tolerance:.2g})"
        )
    table = matrix.numpy()
    sigma = np.concatenate([target.directions.sigma.numpy() for target in targets])
    # A momentum's singular values are no slopes of the loss, which are held out along it.
    held = [found.held_out.get(target.layer.name) for target in targets]
    along = options.gradient is GradientSource.MOMENTUM
    slopes = np.concatenate([h.slopes for h in held if isinstance(h, HeldOut)]) if along else sigma
    norms = block_norms(table, sizes)
    coupling, first, second = largest_pair(norms)
    mass = np.square(norms)
    total = float(mass.sum())
    names = [target.layer.name for target in targets]
    return Across(
        weights=tuple(names),
        directions=tuple(sizes),
        engine=engine,
        exact=engine_named(engine).joint is JointForm.HESSIAN,
        gradient=joint_step(table, sizes, slopes, sigma),
        orthogonal=joint_step(table, sizes, slopes, np.ones_like(sigma)),
        coupling=coupling,
        pair=(names[first], names[second]),
        off_block_mass=float(np.sqrt(max(total - float(mass.trace()), 0.0) / total)) if total > 0 else 0.0,
        residual=residual,
        matrix=tuple(map(tuple, table.tolist()))
        if options.across_matrix
        else Missing("not asked for: --across-matrix"),
    )


def _differ(matrix: Tensor, sizes: Sequence[int], found: Measured) -> float | Missing:
    """The largest difference of a diagonal block from its weight's own matrix, over that one's largest entry."""
    worst = 0.0
    starts = np.cumsum([0, *sizes[:-1]])
    for start, size, curvature in zip(starts, sizes, found.curvatures, strict=True):
        if curvature.matrix.shape != (size, size):
            return Missing("curvature along these directions was not measured weight by weight")
        block = matrix[start : start + size, start : start + size]
        scale = float(curvature.matrix.abs().max())
        worst = max(worst, float((block - curvature.matrix).abs().max()) / scale if scale > 0 else 0.0)
    return worst


def refuse_across(options: ProbeOptions, engines: Collection[EngineName], division: Division) -> None:
    """Refuse what cannot be measured across weights before any work.

    Raises:
        OptionError: an engine that only estimates, or a shard, which sees no whole.
    """
    if not asks_across(options):
        return
    if division.shard is not None or division.assembling:
        raise OptionError(
            "--across-weights is measured in one sitting or by ranks: leave it out with --shard and merge"
        )
    require_joint_engine(engines)
