"""Rules that weigh the two tasks unequally, against their definitions."""

import numpy as np
import pytest

from experiment import tradeoff

ALPHAS = np.linspace(0, 1, 201)
SUPPORTED = 0.7 * np.exp(2 * ALPHAS**2 - 0.2 * ALPHAS)  # falls a little at first, then rises
PATCHING = 3 * np.exp(-2.5 * ALPHAS)


def test_equal_weights_give_the_minimum_of_the_papers_sum():
    total = SUPPORTED / SUPPORTED[0] + PATCHING / PATCHING[0]
    assert tradeoff.best_alpha(ALPHAS, SUPPORTED, PATCHING) == ALPHAS[total.argmin()]


def test_weight_zero_and_one_see_one_task_only():
    ends = [tradeoff.best_alpha(ALPHAS, SUPPORTED, PATCHING, weight) for weight in (0, 1)]
    assert ends == [ALPHAS[SUPPORTED.argmin()], 1.0]


def test_alpha_grows_with_the_weight():
    found = [tradeoff.best_alpha(ALPHAS, SUPPORTED, PATCHING, w) for w in np.linspace(0, 1, 21)]
    assert found == sorted(found) and len(set(found)) > 10


@pytest.mark.parametrize("scale", [1e-3, 1.0, 40.0])
def test_the_unit_of_a_loss_does_not_matter(scale):
    # the supported curve alone is rescaled, so a rule that forgot to normalise would move
    for rule, setting in ((tradeoff.best_alpha, 0.3), (tradeoff.best_under_ceiling, 0.05)):
        assert rule(ALPHAS, scale * SUPPORTED, PATCHING, setting) == rule(
            ALPHAS, SUPPORTED, PATCHING, setting
        )


@pytest.mark.parametrize("ceiling", [0.0, 0.01, 0.2])
def test_ceiling_is_kept_and_used_up(ceiling):
    alpha = tradeoff.best_under_ceiling(ALPHAS, SUPPORTED, PATCHING, ceiling)
    relative = SUPPORTED / SUPPORTED[0]
    at = int(np.flatnonzero(alpha == ALPHAS)[0])
    assert relative[at] <= 1 + ceiling < relative[at + 1]  # the patching loss falls all the way


def test_ceiling_crosses_a_hill_of_the_supported_loss():
    assert tradeoff.best_under_ceiling([0, 0.5, 1], [1.0, 1.5, 1.0], [3.0, 2.0, 1.0], 0.01) == 1.0


def test_a_loss_that_only_rises_allows_nothing_but_zero_shot():
    assert tradeoff.best_under_ceiling(ALPHAS, 1 + ALPHAS, PATCHING, 0.0) == 0.0


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan")])
def test_a_weight_that_is_no_share_is_refused(weight):
    with pytest.raises(ValueError, match="0 to 1"):
        tradeoff.best_alpha(ALPHAS, SUPPORTED, PATCHING, weight)


@pytest.mark.parametrize("ceiling", [-0.1, float("nan")])
def test_a_ceiling_below_zero_is_refused(ceiling):
    with pytest.raises(ValueError, match="at least 0"):
        tradeoff.best_under_ceiling(ALPHAS, SUPPORTED, PATCHING, ceiling)


@pytest.mark.parametrize(
    ("alphas", "supported", "message"),
    [
        (ALPHAS[1:], SUPPORTED[1:], "shapes"),
        (ALPHAS + 0.1, SUPPORTED, "begin at 0"),
        (ALPHAS, SUPPORTED - SUPPORTED[0], "not positive"),
        (ALPHAS, np.where(ALPHAS > 0.5, np.nan, SUPPORTED), "not finite"),
    ],
)
def test_unusable_curves_are_refused(alphas, supported, message):
    with pytest.raises(ValueError, match=message):
        tradeoff.best_alpha(alphas, supported, PATCHING)
