# SPDX-License-Identifier: AGPL-3.0-or-later
import math
import warnings

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from yolo_gradstudy.tables.comparisons import fewest_discordant, holm
from yolo_gradstudy.tables.intervals import (
    bootstrap_interval,
    clustered_mean,
    paired_difference_interval,
    student_interval,
)

Z = 1.959963984540054


def constrained_score(b, c, n, difference):
    """Tango's statistic with the nuisance share found by maximising the multinomial likelihood numerically."""

    def loss(share):
        return -(
            b * math.log(share + difference) + c * math.log(share) + (n - b - c) * math.log1p(-2 * share - difference)
        )

    low, high = max(0.0, -difference), (1 - difference) / 2
    share = optimize.minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
    return (b - c - n * difference) / math.sqrt(n * (2 * share + difference - difference**2))


@settings(max_examples=40)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 30))
def test_the_paired_interval_ends_where_the_score_test_begins_to_refuse(b, c, rest):
    n = b + c + rest
    low, high = paired_difference_interval(b, c, n)
    assert low < (b - c) / n < high
    assert constrained_score(b, c, n, low) == pytest.approx(Z, abs=1e-4)
    assert constrained_score(b, c, n, high) == pytest.approx(-Z, abs=1e-4)


@given(st.integers(0, 12), st.integers(0, 12), st.integers(0, 12))
def test_the_paired_interval_is_antisymmetric_and_has_a_width(b, c, rest):
    n = b + c + rest
    assume(n > 0)
    low, high = paired_difference_interval(b, c, n)
    assert -1 <= low <= (b - c) / n <= high <= 1
    assert high - low > 0.01
    assert paired_difference_interval(c, b, n) == pytest.approx((-high, -low), abs=1e-6)


def test_the_paired_interval_without_a_discordant_pair_is_closed():
    """The score is −nδ/√(nδ(1 − δ)), which is z at z²/(n + z²)."""
    bound = Z**2 / (10 + Z**2)
    assert paired_difference_interval(0, 0, 10) == pytest.approx((-bound, bound), abs=1e-9)
    assert all(map(math.isnan, paired_difference_interval(0, 0, 0)))


def test_a_published_paired_interval():
    """Bentur et al. 2009, 1 and 7 discordant of 21: −0.517 to −0.026 (Fagerland, Lydersen and Laake 2014)."""
    assert paired_difference_interval(1, 7, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)


@pytest.mark.parametrize("of", ["mean", "median"])
@pytest.mark.parametrize("values", [[], [1.0], [2.0, 2.0, 2.0]])
def test_degenerate_values_have_an_interval_without_a_warning(values, of):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = bootstrap_interval(values, of)
    assert found == ((2.0, 2.0) if len(values) == 3 else pytest.approx((math.nan, math.nan), nan_ok=True))


def test_the_bootstrap_leaves_the_global_generator_alone_and_repeats():
    before = str(np.random.get_state())
    found = bootstrap_interval([1.0, 2.0, 4.0, 8.0], "mean")
    assert str(np.random.get_state()) == before
    assert found == bootstrap_interval([1.0, 2.0, 4.0, 8.0], "mean")


def test_the_bootstrap_of_many_is_normal():
    values = np.random.default_rng(3).normal(5, 2, 400)
    half = Z * values.std() / 20
    assert bootstrap_interval(list(values), "mean") == pytest.approx(
        (values.mean() - half, values.mean() + half), abs=0.02
    )


def test_the_bootstrap_of_two_is_their_range():
    """A resample is the least value with probability 1/4 and the largest with 1/4, both above 2.5%."""
    assert bootstrap_interval([1.0, 3.0], "mean") == (1.0, 3.0)
    assert bootstrap_interval([1.0, 3.0], "median") == (1.0, 3.0)


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=12))
def test_student_is_scipys(values):
    assume(np.std(values) > 1e-6)
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert student_interval(values) == pytest.approx((expected.low, expected.high), rel=1e-9, abs=1e-9)


def test_six_discordant_pairs_are_the_fewest():
    assert fewest_discordant() == 6
    assert stats.binomtest(6, 6).pvalue < 0.05 <= stats.binomtest(5, 5).pvalue
    assert fewest_discordant(0.01) == 8


@given(st.lists(st.floats(0, 1) | st.just(math.nan), max_size=8))
def test_holm_is_its_definition(values):
    """The adjusted p of a hypothesis is the least level at which the step-down procedure refuses it."""
    adjusted = holm(values)
    known = [v for v in values if not math.isnan(v)]
    for own, found in zip(values, adjusted, strict=True):
        if math.isnan(own):
            assert math.isnan(found)
            continue
        steps = [min(1.0, v * sum(w >= v for w in known)) for v in known if v <= own]
        assert found == pytest.approx(max(steps))


VALUES = st.floats(-10, 10, allow_subnormal=False)


@given(st.lists(VALUES, min_size=2, max_size=8), st.integers(1, 5))
def test_clusters_of_the_same_value_know_no_more_than_one_of_each(values, times):
    """Pairs of one seed that all say the same are one pair: the error is that of the seeds' mean."""
    middle, error = clustered_mean([[value] * times for value in values])
    assert middle == pytest.approx(np.mean(values), abs=1e-9)
    assert error == pytest.approx(np.std(values, ddof=1) / math.sqrt(len(values)), rel=1e-6, abs=1e-9)


@given(st.lists(st.lists(VALUES, min_size=1, max_size=4), min_size=2, max_size=6))
def test_the_clustered_error_is_a_ratios(clusters):
    """Cochran (1977), section 6.3: the residuals of each cluster's sum from what its size expects."""
    sizes = np.array([len(values) for values in clusters])
    middle = sum(map(sum, clusters)) / sizes.sum()
    residuals = np.array([sum(values) for values in clusters]) - middle * sizes
    error = math.sqrt(residuals.var(ddof=1) / len(clusters)) / sizes.mean()
    assert clustered_mean(clusters) == pytest.approx((middle, error), rel=1e-6, abs=1e-9)
