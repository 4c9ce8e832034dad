"""Long runs: a killed run goes on to the same results, a failed step shows its log, a work folder has one recipe."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from vift_studies import runner
from vift_studies.runner import Runner, Step

ROOT = Path(__file__).parents[2]

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
from vift_studies.runner import Runner, Step
script, work, wait = sys.argv[1:]
def step(name, needs=(), wait="0"):
    return Step(name, name + ".txt", (sys.executable, script, name, "{out}", wait), needs)
Runner([step("one"), step("two", ("one",), wait), step("three", ("two",))], Path(work)).run()
"""


def start(tmp_path, work: Path, wait: float) -> subprocess.Popen:
    (tmp_path / "step.py").write_text(SCRIPT)
    command = [sys.executable, "-c", RUN, str(tmp_path / "step.py"), str(work), str(wait)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(condition, seconds: float = 120.0) -> None:
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
    printed, _ = run.communicate(timeout=30)
    assert run.returncode == 0, printed
    assert "1 of 3 steps are done already" in printed and "min left" in printed
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
    printed = capsys.readouterr().out
    assert "the disk is full" in printed and "bad failed (exit status 1)" in printed
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


def test_a_work_folder_belongs_to_one_recipe(tmp_path, capsys):
    recipe = tmp_path / "stage2.yaml"

    def main(*arguments) -> int:
        return runner.main(
            "vift_studies.paper", "", lambda seeds: [], lambda *args: None, [*arguments], recipes=tmp_path
        )

    recipe.write_text("stage: 2\n")
    for _ in range(2):
        assert main("--work", str(tmp_path / "work")) == 0
    recipe.write_text("stage: 2\nlearning_rate: 1\n")
    capsys.readouterr()
    assert main("--work", str(tmp_path / "work")) == 2
    printed = capsys.readouterr().err
    assert "another recipe" in printed and printed.count("\n") == 1
    assert main("--page", "--work", str(tmp_path / "nowhere")) == 2
    assert main("--jobs", "0") == 2
