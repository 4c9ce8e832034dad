"""A probe finds what is there, and on shuffled labels nothing."""

import numpy as np
import pytest

from vift_layers.probes import probe


def forms(n=900, d=40, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n)
    centers = 2 * rng.standard_normal((classes, d))
    image, text = (centers[labels] + rng.standard_normal((n, d)) for _ in range(2))
    return image + 7, 3 * text, labels


def test_a_probe_finds_a_class_and_shuffled_labels_are_at_chance():
    image, text, labels = forms()
    results = probe(image, text, labels)
    assert results["image"].mean() > 0.95 and results["text"].mean() > 0.95 and results["classes"] == 3
    assert results["transfer"].mean() > 0.95  # a shift and a scale between the forms hide nothing
    error = np.sqrt(1 / 3 * 2 / 3 / 270)  # of a share of 270 held-out items
    assert abs(results["shuffled"].mean() - 1 / 3) < 4 * error < 0.12


def test_a_code_of_its_own_does_not_transfer():
    image, text, labels = forms()
    rotation, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((40, 40)))
    results = probe(image @ rotation, text, labels)
    assert results["image"].mean() > 0.95 and results["transfer"].mean() < 0.7


def test_noise_is_at_chance():
    rng = np.random.default_rng(0)
    results = probe(rng.standard_normal((900, 40)), rng.standard_normal((900, 40)), rng.integers(2, size=900))
    assert all(abs(results[key].mean() - 0.5) < 0.12 for key in ("image", "text", "transfer", "shuffled"))


def test_classes_that_are_too_small_are_left_out_and_one_class_is_refused():
    image, text, labels = forms(n=60, classes=2)
    labels[:3] = 9
    assert probe(image, text, labels)["classes"] == 2
    with pytest.raises(ValueError, match="labels have 1 classes of 5 items or more"):
        probe(image, text, [0] * 60)
    with pytest.raises(ValueError, match="image has 60 items, text 60, labels 59"):
        probe(image, text, labels[:59])
