"""The three slopes that add up to beta, the words made of them, and the factors' predicted profile."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spectrascope.errors import SelfCheckError
from spectrascope.numerics import alignment as module
from spectrascope.numerics.alignment import align, correlate_logs
from spectrascope.numerics.mechanisms import suits_kronecker
from spectrascope.numerics.separable import predict_profile
from spectrascope.records.decomposition import (
    Concentration,
    Determination,
    Factor,
    Factors,
    FisherType,
    PredictedProfile,
    Sharing,
)
from spectrascope.records.report import Measurement
from spectrascope.records.values import EngineName, Interval, Missing, PowerFit

K = 12


def factors_of(lambda_delta, lambda_a, ray_delta, ray_a, *, groups: int = 6, positions: int = 4, **rest) -> Factors:
    def factor(values) -> Factor:
        return Factor(40, tuple(map(float, values)), float(sum(values)), 7.5, 3.0, True)

    scales = 1 + 0.02 * np.cos(np.arange(groups))[:, None]
    return Factors(
        fisher=FisherType.GGN,
        sharing=Sharing.EXPAND,
        columns=9,
        exact=True,
        positions=positions,
        delta=factor(lambda_delta),
        a=factor(lambda_a),
        rayleigh_delta=tuple(map(float, ray_delta)),
        rayleigh_a=tuple(map(float, ray_a)),
        h_gn=tuple(map(float, np.asarray(ray_delta) * ray_a)),
        group_rayleigh_delta=tuple(map(tuple, (scales * ray_delta).tolist())),
        group_rayleigh_a=tuple(map(tuple, (scales * ray_a).tolist())),
        concentration=Concentration((1.0,) * len(lambda_a), 0.1, 0.3, 0.4, 0.5),
        profile=Missing("not here"),
        s_weight=Missing("not here"),
        **rest,
    )


def measurement_of(sigma, h, groups: int = 6) -> Measurement:
    sigma, h = np.asarray(sigma), np.asarray(h)
    scales = 1 + 0.02 * np.sin(np.arange(groups))[:, None]
    return Measurement(
        sigma=tuple(sigma.tolist()),
        h=tuple(h.tolist()),
        curvature_matrix=tuple(map(tuple, np.diag(h).tolist())),
        group_sizes=(10,) * groups,
        group_sigma=tuple(map(tuple, (sigma * scales).tolist())),
        group_h=tuple(map(tuple, (h * scales).tolist())),
        rank=len(sigma),
        full_rank=len(sigma),
        pr_g=3.0,
        effective_rank_g=4.0,
        noise_floor=1e-3,
        engine=EngineName.GAUSS_NEWTON,
        engine_reason="",
        exact=True,
        residual=0.0,
    )


def value(fit: PowerFit | Missing) -> float:
    assert isinstance(fit, PowerFit), fit
    return fit.value


def test_known_slopes_are_recovered() -> None:
    sigma = np.arange(1, K + 1) ** -0.8
    lambda_delta, lambda_a = 3 * sigma**0.7, 5 * sigma**1.1
    factors = factors_of(lambda_delta, lambda_a, 2 * lambda_delta * sigma**0.2, lambda_a * sigma**-0.3)
    h = 7 * sigma**0.4 * np.array(factors.rayleigh_delta) * factors.rayleigh_a
    found = align(measurement_of(sigma, h), factors, (1, K))
    slopes = {
        "beta_lambda_delta": 0.7, "beta_lambda_a": 1.1, "beta_lambda": 1.8, "beta_rho_delta": 0.2, "beta_rho_a": -0.3,
        "beta_phi": -0.1, "beta_chi": 0.4, "beta": 2.1,
    }  # fmt: skip
    for name, truth in slopes.items():
        assert value(getattr(found, name)) == pytest.approx(truth, abs=1e-10), name
    assert found.chi == pytest.approx(7 * sigma**0.4)
    assert found.rho_delta == pytest.approx(2 * sigma**0.2)
    assert isinstance(found.identity_residual, float)
    assert found.identity_residual < 1e-12
    assert found.r_h_kron_sigma2 == pytest.approx(1)
    assert found.r2_h_h_gn == pytest.approx(1)
    for name in ("beta", "beta_chi"):
        assert isinstance(getattr(found, name).jackknife_ci95, Interval)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(4, 20))
def test_beta_is_the_sum_of_its_parts(seed: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    sigma = np.sort(rng.lognormal(size=k))[::-1]
    spectra = [np.sort(rng.lognormal(0, 2, k))[::-1] for _ in range(2)]
    rays = [rng.lognormal(0, 2, k) for _ in range(2)]
    h = rng.lognormal(0, 3, k)
    h[: k // 4 - 1] *= -1  # left out of every slope alike
    found = align(measurement_of(sigma, h), factors_of(*spectra, *rays), (1, k))
    if isinstance(found.beta, Missing):
        assert int((h > 0).sum()) < 4
        return
    assert value(found.beta) == pytest.approx(
        value(found.beta_lambda) + value(found.beta_phi) + value(found.beta_chi), abs=1e-8
    )
    assert value(found.beta_phi) == pytest.approx(value(found.beta_rho_delta) + value(found.beta_rho_a), abs=1e-8)
    assert found.identity_residual <= 1e-8  # type: ignore[operator]


def test_a_sum_that_does_not_add_up_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    sigma = np.arange(1, K + 1) ** -1.0
    original = module.fit_log_log
    monkeypatch.setattr(
        module, "fit_log_log", lambda x, y, **rest: replace(f := original(x, y, **rest), value=f.value + 1e-6)
    )
    with pytest.raises(SelfCheckError, match="not the sum of its parts"):
        align(measurement_of(sigma, sigma**2), factors_of(sigma, sigma, sigma, sigma), (1, K))


def test_chi_jackknife_is_that_of_explicit_replicates() -> None:
    rng = np.random.default_rng(3)
    sigma = np.arange(1, K + 1) ** -0.9
    measured = measurement_of(sigma, sigma**2 * rng.lognormal(0, 0.1, K))
    factors = factors_of(sigma, sigma, sigma * rng.lognormal(0, 0.1, K), sigma)
    table = {
        "sigma": np.array(measured.group_sigma) * rng.lognormal(0, 0.05, (6, K)),
        "h": np.array(measured.group_h) * rng.lognormal(0, 0.05, (6, K)),
        "delta": np.array(factors.group_rayleigh_delta) * rng.lognormal(0, 0.05, (6, K)),
        "a": np.array(factors.group_rayleigh_a) * rng.lognormal(0, 0.05, (6, K)),
    }
    rows = {name: tuple(map(tuple, values.tolist())) for name, values in table.items()}
    measured = replace(measured, group_sigma=rows["sigma"], group_h=rows["h"])
    factors = replace(factors, group_rayleigh_delta=rows["delta"], group_rayleigh_a=rows["a"])
    found = align(measured, factors, (2, K)).beta_chi
    replicates = []
    for left_out in range(6):
        keep = [g for g in range(6) if g != left_out]
        s, h, d, a = (table[name][keep].mean(0)[1:] for name in ("sigma", "h", "delta", "a"))
        replicates.append(np.polyfit(np.log(s), np.log(h / (d * a)), 1)[0])
    spread = np.sqrt(5 / 6 * ((replicates - np.mean(replicates)) ** 2).sum())
    assert isinstance(found, PowerFit)
    assert isinstance(found.jackknife_ci95, Interval)
    assert (found.jackknife_ci95.high - found.jackknife_ci95.low) / 2 == pytest.approx(2.5705818 * spread, rel=1e-6)


def test_too_few_directions_say_why() -> None:
    sigma = np.array([3.0, 2.0, 1.0])
    found = align(measurement_of(sigma, sigma), factors_of(sigma, sigma, sigma, sigma), (1, 3))
    assert isinstance(found.beta, Missing)
    assert "3 usable points" in found.beta.reason
    assert all(m.verdict is Determination.UNDETERMINED for m in found.mechanisms)
    assert found.kronecker.verdict is Determination.UNDETERMINED


def verdicts(*, lam=(0.9, 0.9), rho=(0.0, 0.0), level=(1.0, 1.0), chi=0.0, noise=0.0, positions=4) -> dict[str, str]:
    rng = np.random.default_rng(0)
    sigma = np.arange(1, K + 1) ** -1.0
    spectra = [sigma**s for s in lam]
    rays = [
        c * values * sigma**r * rng.lognormal(0, noise, K) for values, r, c in zip(spectra, rho, level, strict=True)
    ]
    h = rays[0] * rays[1] * sigma**chi
    found = align(measurement_of(sigma, h), factors_of(*spectra, *rays, positions=positions), (1, K))
    return {m.name: m.verdict.value for m in (*found.mechanisms, found.kronecker)}


KRONECKER = "suits a Kronecker preconditioner"


def test_aligned_factors_show_no_mechanism() -> None:
    found = verdicts()
    assert found.pop("none") == "yes"
    assert found.pop(KRONECKER) == "yes"
    assert set(found.values()) == {"no"}


def test_each_mechanism_shows_where_its_slopes_do() -> None:
    assert verdicts(level=(1.0, 0.3))["layernorm flattening"] == "yes"
    assert verdicts(level=(0.3, 1.0))["residual decorrelation"] == "yes"
    assert verdicts(rho=(0.8, 0.0))["softmax concentration"] == "yes"
    assert verdicts(rho=(0.8, 0.0))["none"] == "no"
    shared = verdicts(chi=0.6)
    assert shared["weight-sharing gap"] == "yes"
    assert shared[KRONECKER] == "no"
    assert verdicts(chi=0.6, positions=1)["weight-sharing gap"] == "no"


def test_wide_intervals_do_not_decide() -> None:
    found = verdicts(noise=0.4, level=(1.0, 0.1))
    assert found["none"] == "undetermined"
    assert found["layernorm flattening"] == "undetermined"


def test_a_spread_of_chi_decides_against_kronecker() -> None:
    flat = PowerFit(0.0, 0.0, 0.01, Interval(-0.02, 0.02), Missing("no groups"), 0.0, 12, 0)
    assert suits_kronecker(flat, np.array([1.0, 2.0]), 1.0).verdict is Determination.YES
    assert suits_kronecker(flat, np.array([1.0, 5.0]), 1.0).verdict is Determination.UNDETERMINED
    assert suits_kronecker(flat, np.array([1.0, 20.0]), 1.0).verdict is Determination.NO


def test_correlation_is_numpys_and_refuses_too_little() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.lognormal(size=9), rng.lognormal(size=9)
    assert correlate_logs(x, y) == pytest.approx(np.corrcoef(np.log(x), np.log(y))[0, 1])
    few = correlate_logs([1, 2, -3, 4, 0], [1, 2, 3, 4, 5])
    assert isinstance(few, Missing)
    assert "3 usable points" in few.reason
    assert isinstance(correlate_logs([2, 2, 2, 2], [1, 2, 3, 4]), Missing)


def test_profile_of_equal_eigenvalues_reaches_the_marchenko_pastur_edge() -> None:
    m, n, samples = 400, 900, 5000
    found = predict_profile(torch.full((m,), 2.0), torch.full((n,), 0.5), samples, 5)
    assert isinstance(found, PredictedProfile)
    assert found.sigma[0] == pytest.approx((m**0.5 + n**0.5) / samples**0.5, rel=0.02)


def test_profile_is_that_of_an_explicit_matrix() -> None:
    rng = np.random.default_rng(0)
    left, right = np.arange(1, 61) ** -1.5, np.arange(1, 201) ** -1.0
    found = predict_profile(torch.tensor(left), torch.tensor(right), 100, 10)
    draws = [
        np.linalg.svd(np.sqrt(left)[:, None] * rng.standard_normal((60, 200)) * np.sqrt(right) / 10, compute_uv=False)
        for _ in range(40)
    ]
    assert isinstance(found, PredictedProfile)
    assert np.log(found.sigma) == pytest.approx(np.log(np.median(draws, 0)[:10]), abs=0.35)
    assert np.log(found.sigma[3:]) == pytest.approx(np.log(np.median(draws, 0)[3:10]), abs=0.2)


def test_profile_distance_forgives_a_factor() -> None:
    sigma = np.arange(1, K + 1) ** -1.0
    factors = factors_of(sigma, sigma, sigma, sigma)
    factors = replace(factors, profile=PredictedProfile(tuple((sigma / 3).tolist()), 4))
    found = align(measurement_of(sigma, sigma**2), factors, (1, K))
    assert found.profile_distance == pytest.approx(0, abs=1e-12)
    assert found.profile_scale == pytest.approx(3)


def test_the_slope_of_cross_validated_eigenvalues_stands_beside_the_raw_one() -> None:
    sigma = np.arange(1, K + 1) ** -0.8
    factors = factors_of(sigma**1.5, sigma**0.9, sigma, sigma)
    delta = replace(factors.delta, cross_validated=tuple((2 * sigma**1.1).tolist()))
    without = align(measurement_of(sigma, sigma**2), factors, (1, K))
    assert isinstance(without.beta_lambda_cv, Missing)
    crossed = (*(3 * sigma**0.4).tolist()[:-1], 0.0)
    factors = replace(factors, delta=delta, a=replace(factors.a, cross_validated=crossed))
    found = align(measurement_of(sigma, sigma**2), factors, (1, K))
    assert value(found.beta_lambda_cv) == pytest.approx(1.5, abs=1e-10)
    assert value(found.beta_lambda) == pytest.approx(2.4, abs=1e-10)
    assert isinstance(found.beta_lambda_cv, PowerFit)
    assert found.beta_lambda_cv.n_dropped == 1  # the last one is zero


def test_rank_models_of_a_window_begin_at_its_first_rank() -> None:
    sigma = np.arange(1, K + 1) ** -1.3
    factors = factors_of(sigma, sigma**0.5, sigma, sigma)
    reading = align(measurement_of(sigma, sigma**2), factors, (4, K)).reading
    assert reading.gradient_model is not None
    assert getattr(reading.gradient_model, "value", None) == "power_law"
    assert reading.matches is True
