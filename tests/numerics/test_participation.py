import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

from spectrascope.numerics.participation import effective_rank, participation_ratio, zeta_bound
from spectrascope.records.values import Missing
from tests.support.numerics_cases import power_law

spectra = st.lists(st.floats(1e-200, 1e200), min_size=1, max_size=30)


def test_closed_forms() -> None:
    assert participation_ratio([4.0, 2.0, 2.0]) == pytest.approx(8 / 3, rel=1e-15)
    assert participation_ratio([5.0]) == 1.0
    assert participation_ratio([0.1] * 7) == pytest.approx(7.0, rel=1e-15)
    # p = 1/2, 1/4, 1/4: entropy 1.5 ln 2.
    assert effective_rank([4.0, 2.0, 2.0]) == pytest.approx(2**1.5, rel=1e-14)
    assert effective_rank([5.0]) == 1.0
    assert effective_rank([0.1] * 7) == pytest.approx(7.0, rel=1e-14)


def test_only_positive_values_count() -> None:
    assert participation_ratio([3.0, -50.0, 1.0, 0.0]) == participation_ratio([3.0, 1.0])
    assert effective_rank([3.0, -50.0, 1.0, 0.0]) == effective_rank([3.0, 1.0])
    assert participation_ratio([3.0, 1.0]) == pytest.approx(1.6, rel=1e-15)


@given(spectra)
def test_between_one_and_the_number_of_values(values: list[float]) -> None:
    ratio, rank = participation_ratio(values), effective_rank(values)
    assert isinstance(ratio, float)
    assert isinstance(rank, float)
    assert 1.0 <= ratio <= len(values)
    assert 1.0 <= rank <= len(values)
    assert ratio <= rank * (1 + 1e-12)  # Rényi entropies fall with their order


def test_rounding_does_not_push_past_the_bounds() -> None:
    # Without the clip: 6.000000000000002 and 5.000000000000001.
    eps = 2.0**-53
    assert participation_ratio([1 - eps, 1 - 3 * eps, 1.0, 1 - 2 * eps, 1 - 2 * eps, 1 - 3 * eps]) == 6.0
    assert effective_rank([1.0] * 5) == 5.0


@given(values=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=30), scale=st.floats(1e-200, 1e200))
def test_scale_does_not_matter(values: list[float], scale: float) -> None:
    scaled = [scale * value for value in values]
    assert participation_ratio(scaled) == pytest.approx(participation_ratio(values), rel=1e-12)
    assert effective_rank(scaled) == pytest.approx(effective_rank(values), rel=1e-12)


@given(st.permutations([7.0, 5.0, 3.0, 2.0, 0.5]))
def test_order_does_not_matter(values: list[float]) -> None:
    assert participation_ratio(values) == pytest.approx(17.5**2 / 87.25, rel=1e-14)


@pytest.mark.parametrize("measure", [participation_ratio, effective_rank])
def test_nothing_positive_is_missing(measure) -> None:
    assert measure([]) == Missing("none of 0 values is positive")
    assert measure([-1.0, 0.0]) == Missing("none of 2 values is positive")
    assert measure([1.0, math.nan]) == Missing("NaN or infinity in 1 of 2 points")
    with pytest.raises(ValueError, match="values must be one-dimensional"):
        measure([[1.0], [2.0]])


def test_zeta_bound_closed_forms() -> None:
    # zeta(2)²/zeta(4) = (pi²/6)²/(pi⁴/90) = 2.5;  H_2(2)²/H_2(4) = 1.25²/1.0625 = 25/17.
    bound = zeta_bound(2.0, 1.2, 2)
    assert bound.s == 2.0
    assert bound.infinite == pytest.approx(2.5, rel=1e-14)
    assert bound.finite == pytest.approx(25 / 17, rel=1e-14)
    assert bound.infinite_holds is True
    assert bound.finite_holds is True


def test_zeta_bound_violations_are_told_apart() -> None:
    between = zeta_bound(2.0, 2.0, 2)
    assert (between.infinite_holds, between.finite_holds) == (True, False)
    above = zeta_bound(2.0, 2.6, 2)
    assert (above.infinite_holds, above.finite_holds) == (False, False)


@pytest.mark.parametrize("s", [1.0, 0.5, 0.0, -2.0])
def test_infinite_form_needs_s_above_one(s: float) -> None:
    bound = zeta_bound(s, 1.5, 10)
    reason = Missing(f"s = {s:.4g} is not above 1, the infinite sum diverges")
    assert bound.infinite == reason
    assert bound.infinite_holds == reason
    k = np.arange(1.0, 11.0)
    assert bound.finite == pytest.approx(np.sum(k**-s) ** 2 / np.sum(k ** (-2 * s)), rel=1e-13)


@given(s=st.floats(1.001, 400.0), n=st.integers(1, 200), first=st.integers(1, 5))
def test_finite_form_is_at_most_the_infinite_one(s: float, n: int, first: int) -> None:
    bound = zeta_bound(s, 1.0, n, first_rank=first)
    if isinstance(bound.infinite, Missing):
        assert first > 1
        assert "underflows" in bound.infinite.reason
    else:
        assert 1.0 <= bound.finite <= bound.infinite * (1 + 1e-12)
        assert math.isfinite(bound.infinite)


@given(s=st.floats(-500.0, 500.0), n=st.integers(1, 50), first=st.integers(1, 4))
def test_exact_power_law_holds_with_equality(s: float, n: int, first: int) -> None:
    weights = np.arange(first, first + n, dtype=float) ** (-s / 10)  # /10: the law itself must not overflow
    ratio = participation_ratio(weights)
    assert isinstance(ratio, float)
    bound = zeta_bound(s / 10, ratio, n, first_rank=first)
    assert bound.finite == pytest.approx(ratio, rel=1e-10)
    assert bound.finite_holds
    assert not zeta_bound(s / 10, ratio * (1 + 1e-6), n, first_rank=first).finite_holds


@pytest.mark.parametrize("s", [-500.0, 500.0])
def test_steep_exponents_stay_finite(s: float) -> None:
    bound = zeta_bound(s, 1.0, 50)
    assert bound.finite == pytest.approx(1.0, abs=1e-3)


def test_window_past_the_first_rank_uses_tail_sums() -> None:
    bound = zeta_bound(2.0, 1.0, 3, first_rank=4)
    weights = power_law(2.0, 3, first=4)
    assert bound.finite == pytest.approx(weights.sum() ** 2 / np.sum(weights**2), rel=1e-14)
    tail = math.pi**2 / 6 - (1 + 1 / 4 + 1 / 9)
    tail_of_squares = math.pi**4 / 90 - (1 + 1 / 16 + 1 / 81)
    assert bound.infinite == pytest.approx(tail**2 / tail_of_squares, rel=1e-10)
    assert special.zeta(2.0, 4) == pytest.approx(tail, rel=1e-12)


def test_too_steep_a_tail_is_missing() -> None:
    assert zeta_bound(400.0, 1.0, 3, first_rank=5).infinite == Missing(
        "s = 400 is too steep: the sum from k = 5 underflows"
    )


def test_wrong_calls_are_refused() -> None:
    with pytest.raises(ValueError, match="s must be finite, got nan"):
        zeta_bound(math.nan, 1.0, 3)
    with pytest.raises(ValueError, match="must be at least 1, got 0 and 1"):
        zeta_bound(2.0, 1.0, 0)
    with pytest.raises(ValueError, match="must be at least 1, got 3 and 0"):
        zeta_bound(2.0, 1.0, 3, first_rank=0)
