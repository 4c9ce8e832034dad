"""The estimators give the known answers on known data."""

import numpy as np
import pytest

from vift_layers import geometry as g
from vift_layers import jackknife as j
from vift_layers.band import band_rule


def gaussian(n, d, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d))


def embedded(x, dimensions=512, seed=1):
    """x in a random rotation of a larger space."""
    basis, _ = np.linalg.qr(gaussian(dimensions, x.shape[1], seed))
    return (x @ basis.T).astype(np.float32)


@pytest.mark.parametrize("block", [7, 512])
def test_neighbours_are_those_of_the_whole_distance_matrix(block):
    x = gaussian(60, 5)
    distances = np.linalg.norm(x[:, None] - x[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    results = g.neighbors(x, 9, block)
    assert (results.index == np.argsort(distances, axis=1)[:, :9]).all()
    assert np.allclose(results.distance, np.sort(distances, axis=1)[:, :9], rtol=1e-12)


def test_distances_hold_far_from_the_origin():
    x = gaussian(100, 8) + 1e4
    results, near = g.neighbors(x.astype(np.float32), 5), g.neighbors(x - 1e4, 5)
    assert (results.index == near.index).mean() > 0.98
    assert np.allclose(results.distance, near.distance, rtol=1e-2)


def test_overlap_of_a_set_with_itself_is_1_and_with_any_rotation():
    x = gaussian(300, 12)
    rotation, _ = np.linalg.qr(gaussian(12, 12, seed=2))
    own = g.neighbors(x, 30)
    assert (g.overlap(own, own, 30) == 1).all()
    assert (g.overlap(own, g.neighbors(3 * x @ rotation + 5, 30), 30) == 1).all()


def test_overlap_of_random_sets_is_chance():
    n, k = 1500, 30
    results = g.overlap(g.neighbors(gaussian(n, 6), k), g.neighbors(gaussian(n, 6, seed=9), k), k)
    error = results.std() / np.sqrt(n)
    assert abs(results.mean() - k / (n - 1)) < 4 * error
    assert 0 < error < 0.001


@pytest.mark.parametrize("d", [1, 2, 5, 8, 10])
@pytest.mark.parametrize("kind", ["gaussian", "sphere"])
def test_intrinsic_dimension_within_a_tenth(d, kind):
    n = 2500
    x = gaussian(n, d + (kind == "sphere"), seed=d)
    if kind == "sphere":
        x /= np.linalg.norm(x, axis=1, keepdims=True)
    nearest = g.neighbors(embedded(x), 4)
    for k in (1, 2):
        assert g.gride(g.gride_mu(nearest, k), k) == pytest.approx(d, rel=0.1)


def test_gride_with_k_1_is_twonn():
    log_mu = g.gride_mu(g.neighbors(gaussian(200, 4), 2), 1)
    assert g.gride(log_mu, 1) == len(log_mu) / log_mu.sum()


def test_gride_is_the_maximum_of_its_likelihood():
    k, log_mu = 8, g.gride_mu(g.neighbors(gaussian(400, 5), 16), 8)

    def likelihood(d):
        return np.sum(np.log(d) + (k - 1) * np.log(np.expm1(d * log_mu)) - ((2 * k - 1) * d + 1) * log_mu)

    best = g.gride(log_mu, k)
    assert likelihood(best) > max(likelihood(best * 1.01), likelihood(best * 0.99))


def test_information_imbalance():
    x, other = gaussian(400, 6), gaussian(400, 6, seed=3)
    linear = x * 4 + 1
    assert g.information_imbalance(g.neighbors(x, 1), linear).mean() == pytest.approx(2 / 400)
    assert g.information_imbalance(g.neighbors(x, 1), other).mean() == pytest.approx(1, abs=0.1)
    # the whole tells its first coordinate's neighbours badly in reverse: the coordinate knows less
    part = x[:, :1]
    down = g.information_imbalance(g.neighbors(x, 1), part).mean()
    up = g.information_imbalance(g.neighbors(part, 1), x).mean()
    assert down < up


def test_cka_is_1_for_rotations_and_scales_and_0_for_strangers_at_any_width():
    x = gaussian(500, 20)
    rotation, _ = np.linalg.qr(gaussian(20, 20, seed=4))
    assert g.cka(x, 3 * x @ rotation + 2, block=64)[0] == pytest.approx(1, abs=1e-9)
    assert np.isnan(g.cka(x, np.ones((500, 3)))[0]) and np.isnan(g.cka(x[:3], x[:3])[0])
    for width in (20, 1000, 4096):  # 0.80 by the plain estimator at 4096
        strangers = gaussian(1000, width, seed=1).astype(np.float32), gaussian(1000, width, seed=2).astype(np.float32)
        (value, *without) = j.ckas(*strangers, j.groups_of(1000))
        low, high = j.interval(value, np.array(without))
        assert low < 0 < high and abs(value) < 0.02 and low < value < high


def test_cka_of_a_subset_is_that_of_its_items_by_the_textbook():
    x, y = gaussian(80, 6), gaussian(80, 4, seed=6) + gaussian(80, 4)
    y[:, :3] += x[:, :3]
    kept = np.random.default_rng(0).random((80, 3)) < 0.8
    together = g.cka(x, y, kept, block=13)
    for column, value in zip(kept.T, together):
        assert g.cka(x[column], y[column])[0] == pytest.approx(value, rel=1e-9)
        n = column.sum()
        gram = [z @ z.T * (1 - np.eye(n)) for z in (x[column], y[column])]

        def hsic(a, b, n=n):
            """Song et al. 2012, equation 5, as it stands."""
            one = np.ones(n)
            whole = (one @ a @ one) * (one @ b @ one) / ((n - 1) * (n - 2))
            return (np.trace(a @ b) + whole - 2 / (n - 2) * one @ a @ b @ one) / (n * (n - 3))

        textbook = hsic(*gram) / np.sqrt(hsic(gram[0], gram[0]) * hsic(gram[1], gram[1]))
        assert value == pytest.approx(textbook, rel=1e-9)


def measured(x, y, k=8):
    """Every estimator of a pair: name -> (value, values without each group)."""
    groups, spare = j.groups_of(len(x)), j.spare(len(x))
    near = [g.neighbors(z, max(k, 4) + spare) for z in (x, y)]
    values, *without = j.ckas(x, y, groups)
    return {
        "cka": (values, np.array(without)),
        "overlap": (g.overlap(*near, k).mean(), j.overlaps(*near, k, groups)),
        "imbalance": (g.information_imbalance(near[0], y).mean(), j.imbalances(near[0], y, groups)),
        "dimension": (g.gride(g.gride_mu(near[0], 2), 2), j.dimensions(near[0], 2, groups)),
    }


def test_an_estimate_without_a_group_is_that_of_the_other_items():
    x, y = gaussian(60, 5), gaussian(60, 5, seed=2)
    y += x
    groups = j.groups_of(60)
    found = measured(x, y)
    assert len(set(np.bincount(groups))) == 1 and groups.max() == 19
    for group in (0, 7, 19):
        outside = groups != group
        alone = measured(x[outside], y[outside])
        for name, (value, _) in alone.items():
            assert found[name][1][group] == pytest.approx(value, rel=1e-6), name


def test_intervals_cover_what_other_items_give_at_widths_above_the_number_of_items():
    """60 draws of 80 items in 200 dimensions; 95 % should, 60 draws can tell that from 85 %."""
    values, bounds = {}, {}
    mix = gaussian(6, 200, seed=3)
    for seed in range(60):
        shared = gaussian(80, 6, seed=100 + seed)
        x = shared @ mix + 2 * gaussian(80, 200, seed=200 + seed)
        y = shared @ mix[::-1] + 2 * gaussian(80, 200, seed=300 + seed)
        for name, (value, without) in measured(x, y).items():
            values.setdefault(name, []).append(value)
            bounds.setdefault(name, []).append(j.interval(value, without))
    for name, intervals in bounds.items():
        truth, (low, high) = np.mean(values[name]), np.transpose(intervals)
        assert ((low < truth) & (truth < high)).mean() > 0.85, name
        assert (high - low).mean() < 8 * np.std(values[name]), name  # and are no wider than they need be


def test_too_few_neighbours_for_an_interval_are_told():
    near, groups = g.neighbors(gaussian(60, 5), 8), j.groups_of(60)
    with pytest.raises(ValueError, match="k=8 neighbours without a group need 11, 8 are known"):
        j.overlaps(near, near, 8, groups)


def test_paired_cosine():
    x = gaussian(50, 7)
    assert np.allclose(g.paired_cosine(x, 2 * x), 1)
    assert np.allclose(g.paired_cosine(x, -x), -1)
    assert abs(g.paired_cosine(x, x, shift=1).mean()) < 0.3


def test_coinciding_points_are_told():
    x = np.repeat(gaussian(10, 3), 5, axis=0)
    assert g.neighbors(x, 4).degenerate and not g.neighbors(gaussian(50, 3), 4).degenerate


def test_bad_input_is_named():
    x = gaussian(10, 3)
    with pytest.raises(ValueError, match=r"k=10 must be in 1 ... 9 for 10 points"):
        g.neighbors(x, 10)
    with pytest.raises(ValueError, match=r"k=3 needs 6 neighbours of each point, 4 are known"):
        g.gride_mu(g.neighbors(x, 4), 3)
    with pytest.raises(ValueError, match=r"\(10, 3\), y \(9, 3\)"):
        g.cka(x, x[:9])


@pytest.mark.parametrize(
    "profile, band",
    [
        ([0.0, 0.1, 0.5, 0.6, 0.4, 0.2, 0.1], (1, 4)),  # half of the rise is 0.3
        ([None, 0.1, 0.1, 0.6, 0.1], (2, 3)),
        ([0.0, 0.2, 0.4, 0.6], (1, 3)),  # still rising at the end
        ([0.0, 0.6, 0.1, 0.5, 0.0], (0, 1)),  # a second hump is not part of it
    ],
)
def test_the_band_is_the_range_around_the_peak_with_half_of_the_rise(profile, band):
    results = band_rule(profile)
    assert (results.first, results.stop) == band


def test_without_a_rise_the_band_is_the_papers_depth():
    results = band_rule([0.3] * 33)
    assert (results.first, results.stop) == (6, 16) and "0.2 to 0.5" in results.reason
    assert str(band_rule([float("nan")] * 9)) == "2:4"
