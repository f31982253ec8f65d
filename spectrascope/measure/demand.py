"""What a run's options ask to be measured: the same answers for the run and for its dry run."""

from __future__ import annotations

from collections.abc import Collection

from spectrascope.numerics.sample_groups import MIN_GROUPS
from spectrascope.records.report import ProbeOptions
from spectrascope.records.signal import Estimate, GradientSource
from spectrascope.records.values import EngineName

__all__ = ["count_direction_sets", "curvature_samples", "holds_out", "null_draws", "published"]

_USUAL_CURVATURE_SAMPLES = {True: 2048, False: 512}
"""Samples for curvature where all weights are measured by the class-factor engine, and where some are not.

The first by rule: the least power of 2 from which on the interval of a network's step exponent is at most a tenth wider
than with curvature on all samples, at the largest N measured (``examples/benchmarks/curvature_samples.py``). Of smooth
networks, where each sample costs tens of times as much, the interval is the slopes' well below the second.
"""


def holds_out(options: ProbeOptions) -> bool:
    """Whether folds hold out one another; directions of an optimizer's momentum need no folds."""
    return options.estimate is not Estimate.PUBLISHED and options.gradient is GradientSource.BATCH


def published(options: ProbeOptions) -> bool:
    """Whether curvature is measured along the directions of the whole batch, or of the momentum."""
    return options.estimate is not Estimate.HELD_OUT or options.gradient is GradientSource.MOMENTUM


def null_draws(engine: EngineName, options: ProbeOptions) -> int:
    """Draws of the noise along whose directions curvature is measured too."""
    if options.null_draws == "auto":
        return 2 if engine is EngineName.GAUSS_NEWTON and options.estimate is not Estimate.PUBLISHED else 0
    return int(options.null_draws)


def count_direction_sets(engine: EngineName, options: ProbeOptions) -> int:
    """How many times the top K directions of a weight are measured on each sample: published, held out, of noise."""
    enough = options.groups >= MIN_GROUPS
    draws = null_draws(engine, options) if enough and options.gradient is GradientSource.BATCH else 0
    return published(options) + (holds_out(options) and enough) + draws


def curvature_samples(engines: Collection[EngineName], options: ProbeOptions, n: int) -> int:
    """How many of ``n`` samples curvature is measured on."""
    wanted = options.curvature_samples
    if wanted == "auto":
        wanted = _USUAL_CURVATURE_SAMPLES[all(engine is EngineName.GAUSS_NEWTON for engine in engines)]
    return n if wanted == "all" else min(n, int(wanted))
