"""Scenes: splits share no handwriting, same seed same bytes, pictures show what the scene says."""

import hashlib

import numpy as np
import pytest
from sklearn.datasets import load_digits

from vift_microworld import render, sample_scenes
from vift_microworld.scenes import BACKGROUND, COLORS, SPLITS, glyph_indices


def used_glyphs(split):
    return {o.glyph for scene in sample_scenes(3000, 0, split) for o in scene.objects}


def test_no_handwriting_sample_is_shared_between_splits():
    pools = {split: set().union(*map(set, glyph_indices(split).values())) for split in SPLITS}
    assert sum(map(len, pools.values())) == len(set().union(*pools.values())) == 1797
    for split in SPLITS:
        assert used_glyphs(split) <= pools[split]


def test_no_two_splits_hold_the_same_pixels():
    images = load_digits().images
    train, validation, test = (
        {images[i].tobytes() for indices in glyph_indices(s).values() for i in indices} for s in SPLITS
    )
    assert not train & test and not train & validation and not validation & test


def test_same_seed_same_bytes():
    pictures = render(sample_scenes(200, seed=7, split="test"))
    digest = hashlib.sha256(pictures.tobytes()).hexdigest()
    assert digest == "52025a550ca107bc0ae8ce75f45d9f3a55d189f496dbf1200e2f985608e4480b"


def test_a_scene_depends_on_its_index_not_on_how_many_are_drawn():
    assert sample_scenes(5, 3, "train") == sample_scenes(50, 3, "train")[:5]


def test_seeds_and_splits_differ():
    assert sample_scenes(5, 0, "train") != sample_scenes(5, 1, "train")
    with pytest.raises(ValueError, match="split must be one of"):
        sample_scenes(1, 0, "dev")


def test_the_picture_shows_the_scene():
    scenes = sample_scenes(50, 1, "train")
    for scene, picture in zip(scenes, render(scenes)):
        cells = picture.reshape(3, 16, 3, 16, 3).transpose(0, 2, 1, 3, 4).reshape(9, 256, 3)
        filled = {o.place for o in scene.objects}
        for place in range(9):
            empty = (cells[place] == np.array(BACKGROUND)).all()
            assert empty == (place not in filled)
        for item in scene.objects:
            brightest = cells[item.place][cells[item.place].sum(axis=1).argmax()].astype(int)
            distance = {name: abs(brightest - np.array(rgb)).sum() for name, rgb in COLORS.items()}
            assert min(distance, key=distance.get) == item.color


def test_digits_in_a_scene_differ_and_read_in_order():
    for scene in sample_scenes(300, 2, "validation"):
        assert len({o.digit for o in scene.objects}) == len(scene.objects)
        assert [o.place for o in scene.objects] == sorted({o.place for o in scene.objects})
