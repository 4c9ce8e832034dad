"""A run shows its tokens per second and padding by modality, and its answers at every evaluation."""

import math
import re

import pytest
from PIL import Image

from tests.train.tiny_run import dataset, row, trainer
from vift_train.callbacks import AnswersCallback, Throughput, seconds_left


def test_answers_are_written_at_every_evaluation(tmp_path):
    run = trainer(
        tmp_path / "start", tmp_path / "out", max_steps=4, save_strategy="no", eval_strategy="steps", eval_steps=2,
        eval_dataset={"image": dataset(4, 0), "text": dataset(0, 4)},
    )  # fmt: skip
    rows = [row(i, "image") for i in range(3)]
    run.add_callback(AnswersCallback(run.processing_class, rows, max_new_tokens=4, beta=1.5, fusion_layers=1.0))
    run.train()
    written = sorted(file.name for file in (tmp_path / "out" / "answers").iterdir())
    assert written == [f"step-{step:06d}.{kind}" for step in (2, 4) for kind in ("md", "png")]
    lines = (tmp_path / "out" / "answers" / "step-000004.md").read_text().splitlines()
    assert len(lines) == 5 and rows[0]["messages"][0]["content"][1]["text"] in lines[2]
    assert Image.open(tmp_path / "out" / "answers" / "step-000004.png").size[0] > 500
    logged = [entry for entry in run.state.log_history if "eval_image_loss" in entry or "eval_text_loss" in entry]
    assert len(logged) == 4


def test_answers_need_a_picture(tmp_path):
    with pytest.raises(ValueError, match="1 rows, none with an image"):
        AnswersCallback(None, [row(0, "text")])


def test_throughput_and_padding_are_logged_by_modality(tmp_path):
    run = trainer(tmp_path / "start", tmp_path / "out", max_steps=6, save_strategy="no")
    run.train()
    logs = [entry for entry in run.state.log_history if "loss" in entry]
    for entry in logs:  # pure steps: one modality a step
        (modality,) = {name.split("_")[0] for name in entry if name.endswith("tokens_per_second")}
        assert entry[f"{modality}_tokens_per_second"] > 0 and 0 <= entry[f"{modality}_padding"] < 1
    assert {name.split("_")[0] for entry in logs for name in entry if name.endswith("_padding")} == {"image", "text"}


def test_the_time_left_counts_each_modality_with_its_own_pace():
    throughput = {
        "image": Throughput(100, 110, seconds=6.0, steps=3),
        "text": Throughput(50, 50, seconds=1.0, steps=1),
    }
    # an epoch of 8 image and 2 text steps: (8 x 2 s + 2 x 1 s) / 10 a step, of 7 s of steps in 14 s
    assert seconds_left(throughput, {"image": 8, "text": 2}, 6, elapsed=14.0) == pytest.approx(6 * 1.8 * 2)
    assert seconds_left(throughput, None, 6, elapsed=7.0) == pytest.approx(6 * 7 / 4)
    assert seconds_left({"image": throughput["image"]}, {"image": 8, "text": 2}, 5, elapsed=6.0) == pytest.approx(10)
    assert math.isnan(seconds_left({}, {"image": 1}, 5, elapsed=1.0))


def test_the_progress_bar_shows_pace_padding_and_time_left(tmp_path, capsys):
    trainer(tmp_path / "start", tmp_path / "out", max_steps=4, save_strategy="no", disable_tqdm=False).train()
    shown = capsys.readouterr().err
    assert re.search(r"4/4 \[[\d:]+, 00:00 left; image [\d,]+ tokens/s, [\d.]+% padding; text [\d,]+ tokens/s", shown)
