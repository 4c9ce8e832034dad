"""Intervals against known answers."""

import numpy as np
import pytest

from vift_eval.answers.bootstrap import difference, gap_closed, interval


def test_the_bootstrap_of_a_share_has_the_width_of_its_standard_error():
    hits = np.repeat([1.0, 0.0], [300, 700])
    low, high = interval(hits)
    half = 1.96 * np.sqrt(0.3 * 0.7 / 1000)
    assert [low, high] == pytest.approx([0.3 - half, 0.3 + half], abs=0.004)
    assert interval(np.ones(50)) == [1.0, 1.0]


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        low, high = interval((generator.random(150) < 0.4).astype(float), seed=seed, resamples=400)
        covered += low <= 0.4 <= high
    assert 0.90 <= covered / 200 <= 0.99


def test_differences_are_paired():
    generator = np.random.default_rng(1)
    base = (generator.random(400) < 0.5).astype(float)
    better = base.copy()
    better[:40] = 1.0  # right on 40 more at most: pairing leaves only their spread
    delta = difference(better, base)
    assert delta["difference"] == pytest.approx((better - base).mean(), abs=1e-4)
    assert delta["ci95"][0] > 0 and delta["ci95"][1] - delta["ci95"][0] < 0.06
    assert difference(base, base) == {"difference": 0.0, "ci95": [0.0, 0.0]}
    both = difference(np.array([better, base]), np.array([base, base]))
    assert both["difference"] == pytest.approx(delta["difference"] / 2, abs=1e-4)


def test_the_gap_closed_is_the_ratio_of_the_two_gains():
    unfused, reached, fused = np.repeat([[0.0], [1.0], [0.0]], 200, axis=1)
    fused[:150] = 1.0
    gap = gap_closed(fused, unfused, reached)
    assert gap["value"] == 0.75 and gap["ci95"] == pytest.approx([0.69, 0.81], abs=0.015)
    assert gap_closed(reached, unfused, reached) == {"value": 1.0, "ci95": [1.0, 1.0]}
    assert gap_closed(fused, reached, unfused) == {"value": None, "ci95": None}
