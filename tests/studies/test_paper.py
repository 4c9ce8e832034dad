"""The paper in a box: a killed run goes on to the same results; verdicts follow from figures; plan and page."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from vift_microworld import FAMILIES
from vift_studies.paper import measure as paper_measure
from vift_studies.paper import plan as paper
from vift_studies.paper.figures import paired, score
from vift_studies.paper.plan import ARMS, Runner, Step, plan
from vift_studies.paper.verdicts import RULES, verdicts

ROOT = Path(__file__).parents[2]

# --- running ------------------------------------------------------------------------------------------

# three steps: each appends its name to a list of launches, the second is slow, the third reads the second's result
SCRIPT = """
import pathlib, sys, time
name, out, wait = sys.argv[1], pathlib.Path(sys.argv[2]), float(sys.argv[3])
with open("launches", "a") as launches:
    launches.write(name + "\\n")
out.with_suffix(".started").touch()
time.sleep(wait)
before = pathlib.Path("two.txt").read_text() if name == "three" else ""
out.write_text(before + name)
"""
RUN = """
import sys
from pathlib import Path
from vift_studies.paper.plan import Runner, Step
script, work, wait = sys.argv[1:]
def step(name, needs=(), wait="0"):
    return Step(name, name + ".txt", (sys.executable, script, name, "{out}", wait), needs)
Runner([step("one"), step("two", ("one",), wait), step("three", ("two",))], Path(work)).run()
"""


def start(tmp_path, work: Path, wait: float) -> subprocess.Popen:
    (tmp_path / "step.py").write_text(SCRIPT)
    command = [sys.executable, "-c", RUN, str(tmp_path / "step.py"), str(work), str(wait)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(condition, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_goes_on_and_ends_as_one_that_never_was(how, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run = start(tmp_path, whole, 0.2)
    assert run.wait(30) == 0, run.stdout.read()
    run = start(tmp_path, killed, 1.0)
    wait_for(lambda: any(killed.glob("two*.started")))
    os.kill(run.pid, how)
    assert run.wait(30) != 0
    assert (killed / "one.txt").read_text() == "one" and not (killed / "two.txt").exists()
    run = start(tmp_path, killed, 0.2)
    said, _ = run.communicate(timeout=30)
    assert run.returncode == 0, said
    assert "1 of 3 steps are done already" in said and "min left" in said
    for name in ("one", "two", "three"):
        assert (killed / f"{name}.txt").read_text() == (whole / f"{name}.txt").read_text()
    assert Counter((killed / "launches").read_text().split()) == {"one": 1, "two": 2, "three": 1}
    assert Counter((whole / "launches").read_text().split()) == {"one": 1, "two": 1, "three": 1}


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code, "{out}")


def test_a_failed_step_shows_its_log_and_leaves_no_mark(tmp_path, capsys):
    runner = Runner([Step("bad", "bad.json", python("raise SystemExit('the disk is full')"))], tmp_path)
    with pytest.raises(SystemExit) as stopped:
        runner.run()
    assert stopped.value.code == 1
    said = capsys.readouterr().out
    assert "the disk is full" in said and "bad failed (exit status 1)" in said
    assert not list((tmp_path / "steps").iterdir())
    with pytest.raises(SystemExit):  # a step that writes nothing has failed too
        Runner([Step("empty", "empty.json", python("pass"))], tmp_path).run()
    with pytest.raises(ValueError, match="wait for each other: a"):
        Runner([Step("a", "a.json", python("pass"), needs=("b",))], tmp_path).run()


def test_steps_run_side_by_side_and_their_cpu_time_is_kept(tmp_path):
    busy = "import sys, time\nwhile time.process_time() < 0.5: pass\nopen(sys.argv[1], 'w')"
    Runner([Step(name, name, python(busy)) for name in ("a", "b")], tmp_path, jobs=2).run()
    for name in ("a", "b"):
        spent = json.loads((tmp_path / "steps" / f"{name}.json").read_text())
        assert 0.5 <= spent["cpu_seconds"] < 2.0 and spent["wall_seconds"] >= 0.5


def test_no_step_is_lost_that_ends_while_another_starts(tmp_path):
    quick = python("import sys; open(sys.argv[1], 'w')")
    Runner([Step(f"s{i}", f"s{i}", quick) for i in range(30)], tmp_path, jobs=4).run()
    assert len(list((tmp_path / "steps").iterdir())) == 30


def test_a_work_folder_belongs_to_one_recipe(tmp_path, monkeypatch, capsys):
    recipes = tmp_path / "recipes"
    recipes.mkdir()
    (recipes / "stage2.yaml").write_text("stage: 2\n")
    monkeypatch.setattr(paper, "RECIPES", recipes)
    paper.check_recipe(tmp_path / "work")
    paper.check_recipe(tmp_path / "work")
    (recipes / "stage2.yaml").write_text("stage: 2\nlearning_rate: 1\n")
    assert paper.main(["--work", str(tmp_path / "work")]) == 2
    said = capsys.readouterr().err
    assert "another recipe" in said and said.count("\n") == 1
    assert paper.main(["--page", "--work", str(tmp_path / "nowhere")]) == 2
    assert paper.main(["--jobs", "0"]) == 2


def test_the_plan_is_in_order_and_leaves_no_arm_out():
    steps = plan((0, 1, 2))
    names = [step.name for step in steps]
    assert len(set(names)) == len(names) and len({step.output for step in steps}) == len(steps)
    for number, step in enumerate(steps):
        assert set(step.needs) <= set(names[:number]), step.name
        assert step.command.count("{out}") == 1
    for seed in (0, 1, 2):
        last = next(step for step in steps if step.name == f"seed{seed}/arms")
        assert {f"seed{seed}/arm-{arm}" for arm in ARMS} <= set(last.needs)


# --- measuring ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prediction, answer, letter",
    [
        ("Red.", "red", "r"), ("blue", "red", "w"), ("7", "red", "k"), ("top left", "yes", "k"), ("", "3", "e"),
        ("the picture shows 3 digits : top left red 7", "3", "c"), ("color color what", "3", "g"), ("7 7", "7", "g"),
    ],
)  # fmt: skip
def test_every_answer_has_one_outcome(prediction, answer, letter):
    assert paper_measure.outcome(prediction, answer) == letter and letter in paper_measure.OUTCOMES


def test_every_family_is_held_out_in_exactly_one_split():
    splits = [paper_measure.held_out(seed) for seed in (0, 1, 2)]
    assert sorted(family for split in splits for family in split) == sorted(FAMILIES)
    assert {len(split) for split in splits} == {5}


def test_scores_are_shares_of_letters_and_pairs_are_paired():
    entry = score(["rrwc", "rkge"])
    assert entry["seeds"] == [0.5, 0.25] and entry["mean"] == 0.375
    assert [entry[name] for name in ("captions", "wrong_kind", "garbage", "empty")] == [0.125] * 4
    assert score(["rr", "www"])["mean"] == 0.5  # seeds of different size weigh the same
    delta = paired(["rrrr", "wwww"], ["wwww", "wwww"])
    assert delta["difference"] == 0.5 and [d["difference"] for d in delta["seeds"]] == [1.0, 0.0]


# --- verdicts -----------------------------------------------------------------------------------------


def delta(difference: float, half: float = 0.02, seeds=(None,) * 3) -> dict:
    one = {"difference": difference, "ci95": [difference - half, difference + half]}
    return one | {"seeds": [one if s is None else {"difference": s, "ci95": [s - half, s + half]} for s in seeds]}


def verdict(title_part: str, results: dict) -> str:
    (found,) = [v for v in verdicts(results) if title_part in v["title"]]
    return found["verdict"]


def way(mean: float = 0.5, captions: float = 0.0, **more) -> dict:
    return {"mean": mean, "seeds": [mean] * 3, "captions": captions, "wrong_kind": 0, "garbage": 0, "empty": 0} | more


@pytest.mark.parametrize(
    "gain, captions, expected",
    [
        (delta(0.1), 0.4, "reproduced"),
        (delta(0.1, seeds=(0.3, 0.2, -0.01)), 0.4, "not reproduced"),
        (delta(0.01), 0.4, "not reproduced"),
        (delta(-0.1), 0.02, "not testable at this scale"),
    ],
)
def test_fusion_is_reproduced_only_above_zero_in_every_seed(gain, captions, expected):
    results = {"ways": {"unfused": way(captions=captions, fused_minus_this=gain), "fused": way()}}
    assert verdict("captions into answers", results) == expected


@pytest.mark.parametrize("gain, expected", [(delta(0.1), "reproduced"), (delta(0.01), "not reproduced")])
def test_bands_and_arms_are_judged_by_their_interval(gain, expected):
    names = ("vift_minus_vit_unseen", "vift_minus_vit_text_unseen", "vift_minus_vit_text_ability")
    arms = {"differences": dict.fromkeys((*names, "vift_minus_vit_text_text_ability"), gain)}
    results = {"ways": {"band 4:8": way()}, "top_half_minus_lowest_quarter": gain, "arms": arms}
    for title in ("top half is the best", "ViFT beats", "keeps the text ability"):
        assert verdict(title, results) == expected


def test_growth_needs_ours_above_zero_and_theirs_not():
    for ours, theirs, expected in (
        (0.1, 0.0, "reproduced"), (0.1, 0.1, "not reproduced"), (0.0, 0.0, "not reproduced"),
    ):  # fmt: skip
        both = {"vift_growth_unseen": delta(ours), "vit_growth_unseen": delta(theirs)}
        assert verdict("goes on growing", {"arms": {"differences": both}}) == expected


def test_sweeps_are_judged_by_their_failures():
    doses = {
        "top_half 0.1": way(0.2, captions=0.4, minus_reference=delta(-0.3)),
        "top_half 2.0": way(0.5, captions=0.05, minus_reference=delta(0.0)),
        "top_half 8.0": way(0.1, garbage=0.5, minus_reference=delta(-0.4)),
    }
    alphas = {"top_half 0.4": way(minus_reference=delta(-0.4)), "top_half 0.8": way(minus_reference=delta(-0.01))}
    results = {"sweeps": {"dose": doses, "alpha": alphas, "plain": {"unfused": way(captions=0.4)}}}
    assert verdict("leaves captions", results) == verdict("gives garbage", results) == "reproduced"
    assert verdict("ends in refusals", results) == "not reproduced"
    results["sweeps"]["plain"]["unfused"]["captions"] = 0.0
    doses["top_half 8.0"]["garbage"] = 0.0
    assert verdict("leaves captions", results) == "not testable at this scale"
    assert verdict("gives garbage", results) == "not reproduced"


@pytest.mark.parametrize(
    "gaps, captions, expected",
    [([0.7, 0.8, 0.9], 0.7, "met"), ([0.69, 0.8, 0.9], 0.7, "not met"), ([0.8, None, 0.8], 0.7, "not met"),
     ([0.8, 0.8, 0.8], 0.69, "not met")],
)  # fmt: skip
def test_the_goal_is_met_in_every_seed_or_not(gaps, captions, expected):
    results = {"gap_closed": gaps, "ways": {"caption_first": way(captions)}}
    assert verdict("70 %", results) == expected


def test_controls_cost_and_calibration_are_judged_by_their_bars():
    for gain, share, calibrated, expected in ((0.15, 0.33, -0.02, "met"), (0.14, 0.34, -0.03, "not met")):
        controls = {name: way(fused_minus_this=delta(gain)) for name in ("blind", "wrong_image", "random_vectors")}
        results = {
            "ways": controls,
            "cost": {"fused": {"share_of_caption_first": [0.1, share]}},
            "calibrate": {"calibrated_minus_tuned": delta(0.0, seeds=(0.0, calibrated, 0.0))},
        }
        for title in ("at least 15 points", "a third of its time", "within 2 points"):
            assert verdict(title, results) == expected, title


def test_every_rival_must_be_beaten():
    ways = {name: way(fused_minus_this=delta(0.1)) for name in ("logit_mix", "logit_contrast", "merged_weights")}
    assert verdict("merging weights", {"ways": ways}) == "met"
    ways["merged_weights"]["fused_minus_this"] = delta(-0.04)
    assert verdict("merging weights", {"ways": ways}) == "not met"


def test_the_mechanism_needs_every_mode_only_way_below(
    ways=("other_question", "static_vector", "forced_first_token"),
):
    results = {"ways": {name: way(0.2, fused_minus_this=delta(0.3)) for name in ways}}
    results["ways"] |= {"unfused": way(0.1), "fused": way(0.5)}
    assert verdict("content counts", results) == "met"
    assert "static_vector 25 %" in next(v["reason"] for v in verdicts(results) if v["claim"] == "mechanism")
    results["ways"]["static_vector"]["fused_minus_this"] = delta(0.01)
    assert verdict("content counts", results) == "not met"


@pytest.mark.parametrize("gain, expected", [(-0.2, "met"), (0.0, "not met")])
def test_the_layers_are_explained_only_if_replacing_higher_costs_answers(gain, expected):
    replace = {
        "1:2": way(0.5, minus_reference=delta(0.0)),
        "4:5": way(0.5 + gain, minus_reference=delta(gain)),
        "7:8": way(0.2, minus_reference=delta(-0.3)),
    }
    results = {"sweeps": {"replace": replace, "plain": {"blind": way(0.2)}}}
    assert verdict("below the top half", results) == expected
    reason = next(v["reason"] for v in verdicts(results) if "below the top half" in v["title"])
    assert "at layer 1, 4, 7: 50 %" in reason and ("67 % of what" in reason) == (gain < 0)


def test_a_claim_without_figures_is_not_measured():
    found = verdicts({})
    assert len(found) == len(RULES) and {v["verdict"] for v in found} == {"not measured"}
    assert "'gap_closed'" in next(v["reason"] for v in found if "70 %" in v["title"])
