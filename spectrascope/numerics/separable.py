"""What the spectra of two Kronecker factors alone say of the gradient's singular values (separable covariance)."""

from __future__ import annotations

import torch
from torch import Tensor

from spectrascope.numerics.spectra import gram_eigenvalues
from spectrascope.records.decomposition import PredictedProfile
from spectrascope.records.values import Missing

__all__ = ["predict_profile"]

_LARGEST = 2304  # smaller side up to which sampling takes seconds


def predict_profile(
    lambda_delta: Tensor, lambda_a: Tensor, n_samples: int, k: int, *, n_draws: int = 4, seed: int = 0
) -> PredictedProfile | Missing:
    """Leading singular values of C_delta^½ X C_A^½ / √N, X of independent standard normal entries.

    Their law depends on the factors through their eigenvalues only, since X is invariant under rotations; for large
    sides it is that of Couillet and Hachem's fixed point. It is the law of a gradient that is all sampling noise of a
    separable covariance, so a measured spectrum that is steeper carries signal, or curvature the factors miss.

    Args:
        lambda_delta: all eigenvalues of C_delta (m,).
        lambda_a: all eigenvalues of C_A (n,).
        n_samples: N, the samples the gradient is a mean over.
        k: how many singular values.
        n_draws: matrices drawn; their medians are returned.
        seed: of the draws.

    Returns:
        The profile, or why there is none (a side too large to sample).

    Cost: ``n_draws`` Gram matrices of min(m, n).

    Reference: Couillet and Hachem 2014, "Analysis of the limiting spectral measure of large random matrices of the
    separable covariance type"; MEASUREMENT section 6.

    >>> one = predict_profile(torch.ones(1), torch.ones(4000), 4000, 1)
    >>> round(one.sigma[0], 1)
    1.0
    """
    # Those that are zero take part in the draws: rounding says which are, and must not say what is drawn.
    left, right = (values.double().clamp_min(0).sqrt() for values in (lambda_delta, lambda_a))
    if min(len(left), len(right)) > _LARGEST:
        left, right = left[left > 0], right[right > 0]
    if min(len(left), len(right)) > _LARGEST:
        return Missing(f"both factors have more than {_LARGEST} eigenvalues, too many to sample")
    if not (left.any() and right.any()):
        return Missing("a factor is zero")
    generator = torch.Generator().manual_seed(seed)
    draws = []
    for _ in range(n_draws):
        noise = torch.randn(len(left), len(right), generator=generator, dtype=torch.float32).double()
        values, _ = gram_eigenvalues(left[:, None] * noise * right, precise=False)
        draws.append((values[:k] / n_samples).sqrt())
    return PredictedProfile(tuple(torch.stack(draws).median(0).values.tolist()), n_draws)
