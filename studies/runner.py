"""Long runs as lists of steps: what is done stays done, and a run that was stopped or killed goes on where it was.

Each step is one command of this project, in a process of its own, with one result (a folder or a file). A step whose
mark stands in `<work>/steps/` is skipped; results are written beside their place and moved there whole. Several steps
run side by side, one thread each. `main` is the command line that the studies share.
"""

import argparse
import contextlib
import fcntl
import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vift_eval.files import made_by, read_json, weights_sha256, write_json
from vift_train.micro import RECIPES


@dataclass(frozen=True)
class Step:
    """`command` writes its result to the path that stands for "{out}" in it; `output` is where the result belongs."""

    name: str
    output: str
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()
    seconds: float = 60.0


def console(name: str) -> str:
    """A console command of this environment."""
    return str(Path(sys.executable).with_name(name))


class Runner:
    """Runs steps, `jobs` at a time; what is marked as done is skipped."""

    def __init__(self, steps: list[Step], work: Path, jobs: int = 2, every: float = 30.0):
        self.steps, self.work, self.jobs, self.every = steps, work, jobs, every
        self.running: dict[int, tuple[Step, float, Path, subprocess.Popen]] = {}
        self.start, self.done_here = time.monotonic(), 0.0

    def mark(self, step: Step) -> Path:
        return self.work / "steps" / f"{step.name.replace('/', '.')}.json"

    def log(self, step: Step) -> Path:
        return self.work / "logs" / f"{step.name.replace('/', '.')}.log"

    def is_done(self, name: str) -> bool:
        return any(step.name == name and self.mark(step).exists() for step in self.steps)

    def run(self) -> None:
        """
        Raises:
            SystemExit: a step failed (its log's end is printed), or the run was interrupted (status 130).
        """
        for folder in ("steps", "logs"):
            (self.work / folder).mkdir(parents=True, exist_ok=True)
        self.lock = (self.work / "lock").open("w")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            print("waiting for the last steps of an earlier run in this folder to end", flush=True)
            fcntl.flock(self.lock, fcntl.LOCK_EX)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        waiting = [step for step in self.steps if not self.mark(step).exists()]
        self.total = sum(step.seconds for step in waiting)
        print(f"{len(self.steps) - len(waiting)} of {len(self.steps)} steps are done already", flush=True)
        last = time.monotonic()
        try:
            while waiting or self.running:
                ready = [step for step in waiting if all(self.is_done(need) for need in step.needs)]
                for step in ready[: self.jobs - len(self.running)]:
                    waiting.remove(step)
                    self._launch(step)
                if not self.running:
                    raise ValueError(f"steps wait for each other: {', '.join(step.name for step in waiting)}")
                for process in list(self.running):
                    pid, status, usage = os.wait4(process, os.WNOHANG)
                    if pid:
                        self._finish(pid, os.waitstatus_to_exitcode(status), usage)
                if time.monotonic() - last > self.every:
                    last = time.monotonic()
                    print(f"{self._left()}; at work: {'; '.join(map(self._now, self.running.values()))}", flush=True)
                time.sleep(0.1)
        except KeyboardInterrupt:
            print("stopped; the same command goes on from here", flush=True)
            sys.exit(130)
        finally:
            for process in self.running:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process, signal.SIGKILL)
            self.lock.close()

    def _launch(self, step: Step) -> None:
        out = self.work / f"{step.output}.part{os.getpid()}"
        out.parent.mkdir(parents=True, exist_ok=True)
        for stale in out.parent.glob(f"{Path(step.output).name}.part*"):  # of a run that was killed
            shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
        command = [part.replace("{out}", str(out.resolve())) for part in step.command]
        with self.log(step).open("w") as log:
            log.write(shlex.join(command) + "\n")
            log.flush()
            # the lock stays with the children: should this process be killed, the next run waits for them
            process = subprocess.Popen(command, cwd=self.work, stdout=log, stderr=log, start_new_session=True,
                                       pass_fds=(self.lock.fileno(),), env=one_thread())  # fmt: skip
        # a Popen that nobody holds is reaped by the next one, and its exit status and usage are lost
        self.running[process.pid] = (step, time.monotonic(), out, process)

    def _finish(self, process: int, code: int, usage) -> None:
        step, began, out, popen = self.running.pop(process)
        popen.returncode = code
        if code or not out.exists():
            tail = "\n".join(self.log(step).read_text(errors="replace").splitlines()[-15:])
            print(f"{tail}\n{step.name} failed (exit status {code}); its log: {self.log(step)}", flush=True)
            sys.exit(1)
        place = self.work / step.output
        if place.is_dir():
            shutil.rmtree(place)
        out.replace(place)
        wall, cpu = time.monotonic() - began, usage.ru_utime + usage.ru_stime
        write_json(self.mark(step), {"cpu_seconds": round(cpu, 1), "wall_seconds": round(wall, 1)})
        self.done_here += step.seconds
        print(f"{step.name} done in {wall:.0f} s ({cpu:.0f} s of CPU); {self._left()}", flush=True)

    def _left(self) -> str:
        """Steps done, and the time left: the plan's seconds, at the speed seen so far (at first, the plan's own)."""
        done = sum(self.mark(step).exists() for step in self.steps)
        seen, grace = (time.monotonic() - self.start) * self.jobs, 600.0
        slowness = (seen + grace) / (self.done_here + grace)
        left = (self.total - self.done_here) * slowness / self.jobs
        return f"{done}/{len(self.steps)} steps, about {left / 60:.0f} min left"

    def _now(self, running) -> str:
        step, began, *_ = running
        lines = self.log(step).read_text(errors="replace").splitlines()
        return f"{step.name} ({time.monotonic() - began:.0f} s: {lines[-1][:70] if len(lines) > 1 else 'starting'})"


def one_thread() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}


def check_recipe(work: Path, recipe: list[Path]) -> None:
    """A work folder belongs to one recipe: raises a ValueError where it holds steps of other files than `recipe`."""
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(recipe))).hexdigest()[:16]
    mark = work / "recipe.json"
    if mark.exists() and (other := read_json(mark)["sha256"]) != digest:
        raise ValueError(
            f"{work} holds steps of another recipe ({other}, now {digest}): remove it or name another --work"
        )
    work.mkdir(parents=True, exist_ok=True)
    write_json(mark, {"sha256": digest})


def write_results(folder: Path, name: str, made: dict, results: dict, draw: Callable, page: Callable) -> None:
    """`<name>.json`, plots and README.md into `folder`, all from `made` and `results`."""
    results = {"made": made} | results
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{name}.json", results)
    draw(results, folder)
    (folder / "README.md").write_text(page(results), encoding="utf-8")


def made_of(command: str, models: dict[str, Path]) -> dict:
    """`vift_eval.files.made_by` of models that are called by other names than their folders'."""
    weights = {name: (weights_sha256(folder) or "unknown")[:12] for name, folder in models.items()}
    return made_by(command) | {"weights": weights}


def main(
    name: str,
    description: str,
    plan: Callable[[list[int]], list[Step]],
    write_page: Callable[[Path, Path, list[int]], None],
    argv: list[str] | None,
    work: str = "runs/paper",
    recipes: Path = RECIPES,
) -> int:
    """
    Runs a study's steps and writes its page.

    Args:
        name: of the module that is run, and (its last part) of the folder in docs/results.
        plan: seeds -> steps.
        write_page: work folder, folder of the page, seeds.
        work, recipes: where steps keep their results by default, and the recipes that these belong to.

    Returns:
        The exit status: 2 after a mistake of the user, which is one line.
    """
    place = Path("docs/results") / name.rsplit(".", 1)[-1]
    parser = argparse.ArgumentParser(prog=f"python -m {name}", description=description)
    parser.add_argument("--work", type=Path, default=Path(work), help="where steps keep their results")
    parser.add_argument("--output", type=Path, default=place, help="where page, plots and figures go")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="steps at a time, one thread each")
    parser.add_argument("--page", action="store_true", help="only write the page, from the steps that are done")
    args = parser.parse_args(argv)
    try:
        if args.jobs < 1:
            raise ValueError(f"--jobs={args.jobs} must be at least 1")
        if args.page and not args.work.is_dir():
            raise ValueError(f"--work={args.work} does not exist: nothing has been measured")
        if not args.page:
            check_recipe(args.work, list(recipes.glob("*.yaml")))
            start = time.monotonic()
            Runner(plan(args.seeds), args.work, args.jobs).run()
            print(f"all steps done, {(time.monotonic() - start) / 60:.0f} min", flush=True)
        write_page(args.work, args.output, args.seeds)
        print(f"wrote {args.output}")
    except ValueError as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        return 2
    return 0
