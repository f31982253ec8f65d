"""Weights with made-up held-out slopes and curvature, whose best step exponent is known."""

from dataclasses import replace

import numpy as np

from spectrascope.numerics.signal import read_signal, t_values
from spectrascope.records.report import LayerReport
from spectrascope.records.signal import HeldOut
from spectrascope.records.values import LayerKind, Missing
from tests.support.made_up_reports import make_info, make_layer, make_measurement


def held_out_layer(
    name: str,
    exponent: float,
    *,
    published: float = 2.0,
    noise: float = 0.0,
    share: float = 1.0,
    k: int = 20,
    kind: LayerKind = LayerKind.CONV,
) -> LayerReport:
    """Slopes ``share``·sigma and a diagonal curvature 3·sigma^exponent: the best step has exactly that exponent.

    The groups scatter by a thousandth, or by ``noise`` times the slope.
    """
    row = make_layer(make_info(name, kind), make_measurement(beta=published, k=k))
    sigma = np.asarray(row.measurement.sigma)
    h = 3 * sigma**exponent
    pattern = np.array([[1.0, -1.0, 1.0, -1.0], [1.0, 1.0, -1.0, -1.0], [1.0, -1.0, -1.0, 1.0]])
    scatter = np.stack([pattern[j % 3] * (1 + 0.1 * j) for j in range(k)], axis=1)  # (groups, k), mean 0
    slopes = share * sigma * (1 + max(noise, 1e-3) * scatter)
    sizes = row.measurement.group_sizes
    unread = Missing("not fitted yet")
    held = HeldOut(
        n_folds=4,
        slopes=tuple(share * sigma),
        t=tuple(t_values(slopes, sizes)),
        h=tuple(h),
        curvature_matrix=tuple(map(tuple, np.diag(h))),
        group_slopes=tuple(map(tuple, slopes)),
        group_h=(tuple(h),) * len(sizes),
        beta=unread,
        step_exponent=unread,
    )
    held_out, _, analysis = read_signal(row.measurement, held, Missing("no null draws"), row.analysis)
    return replace(row, held_out=held_out, analysis=analysis)
