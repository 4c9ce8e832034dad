"""The paper in a box: train what is needed over three seeds, measure every claim, write the page.

    python -m vift_studies.paper.plan                 # or: make paper

`plan` is the whole run as a list of steps: each is one command of this project, in a process of its own, with one
result (a folder or a JSON file). A step whose mark stands in `<work>/steps/` is skipped, so that a run that was
stopped, or killed, goes on where it was; results are written beside their place and moved there whole. Two steps run
side by side, one thread each. When all are done (or with `--page`, at any time) `paper_page` writes docs/results/paper/.
"""

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "train" / "recipes" / "micro"
# keys of stage2.yaml that say which rows the micro recipe makes, the rest are fields of VIFTTrainingConfig
ROW_KEYS = ("caption_rows", "no_query_share", "queries", "text_rows", "text_turns")
# Stage-2 runs besides the recipe's own: name -> (data, divisor: 4 = a quarter of the rows). All start from the
# recipe's stage 1, but `one_stage`, which starts before it and gets stage 1's captions too.
ARMS = {
    **{f"vift-{n}": (("detailed", "text"), n) for n in (64, 16, 4)},
    **{f"vit-{n}": (("visual",), n) for n in (64, 16, 4, 1)},
    "vit_text-4": (("visual", "text"), 4),
    "one_stage-4": (("web", "detailed", "text"), 4),
    "mixed-4": (("detailed", "text"), 4),
    "vift_a-4": (("detailed", "added", "text"), 4),
}
# CPU seconds of a step on the machine that the README names: for the time left only
SECONDS = {
    "start": 1100,
    "stage1": 80,
    "vift": 250,
    "data": 10,
    "validation": 140,
    "choose": 8,
    "test": 120,
    "calibrate": 25,
    "cost": 25,
    "arms": 100,
}


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


def arm_command(seed: int, arm: str) -> tuple[str, ...]:
    """The `vift-train` command of one arm; paths are relative to the work folder."""
    names, divisor = ARMS[arm]
    data = f"seed{seed}/data"
    # stage 1's captions are not divided: the arms at a quarter of stage 2's data had all of stage 1's
    files = {name: f"{data}/{name}-{1 if name == 'web' else divisor}.parquet" for name in names}
    pictures = [file for name, file in files.items() if name != "text"]
    start = f"seed{seed}/{'start' if arm.startswith('one_stage') else 'stage1'}"
    recipe = "vit-baseline" if arm.startswith("vit") else "stage2"
    return (
        console("vift-train"), "--config", f"{data}/{recipe}.yaml", "--model", start, "--seed", str(seed),
        "--captions", *pictures, *(("--instructions", files["text"]) if "text" in files else ()),
        *(("--modality_order", "mixed") if arm.startswith("mixed") else ()),
        "--attn_implementation", "eager", "--output_dir", "{out}",
    )  # fmt: skip


def plan(seeds=(0, 1, 2)) -> list[Step]:
    """All steps, in the order in which they are started."""
    measure = (sys.executable, "-m", "vift_studies.paper.measure")
    every = [str(seed) for seed in seeds]

    def measured(kind: str, needs, seed: int | None = None) -> Step:
        name = kind if seed is None else f"seed{seed}/{kind}"
        which = every if seed is None else [str(seed)]
        return Step(name, f"{name}.json", (*measure, kind, "--seeds", *which, "--json", "{out}"), needs, SECONDS[kind])

    steps, arms = [], []
    for seed in seeds:
        at = f"seed{seed}"
        micro = (console("vift-micro"), "--seed", str(seed), "--phase0", f"{at}/phase0")
        kept = ("--stage1", f"{at}/stage1", "--output", "{out}")
        for name, options, needs in (
            ("start", ("--start", "{out}"), ()),
            ("stage1", ("--stage1", "{out}"), (f"{at}/start",)),
            ("vift", kept, (f"{at}/stage1",)),
        ):
            steps.append(Step(f"{at}/{name}", f"{at}/{name}", (*micro, *options), needs, SECONDS[name]))
    for seed in seeds:
        command = (*measure, "data", "--seeds", str(seed), "--json", "{out}")
        data = Step(f"seed{seed}/data", f"seed{seed}/data", command, seconds=SECONDS["data"])
        steps += [data, measured("validation", (f"seed{seed}/vift",), seed)]
    steps.append(measured("choose", tuple(f"seed{seed}/validation" for seed in seeds)))
    for kind in ("test", "calibrate", "cost"):
        steps += [measured(kind, (f"seed{seed}/vift", "choose"), seed) for seed in seeds]
    for arm, (names, divisor) in ARMS.items():
        for seed in seeds:
            needs = (f"seed{seed}/stage1", f"seed{seed}/data")
            seconds = 12 + (95 if "visual" in names else 250) / divisor + 80 * ("web" in names)
            arms.append(Step(f"seed{seed}/arm-{arm}", f"seed{seed}/{arm}", arm_command(seed, arm), needs, seconds))
    steps += arms
    for seed in seeds:
        trained = tuple(step.name for step in arms if step.name.startswith(f"seed{seed}/"))
        steps.append(measured("arms", (*trained, "choose"), seed))
    return steps


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


def write_json(path: Path, value) -> None:
    """Whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def training_settings(name: str) -> dict:
    """A recipe's fields of VIFTTrainingConfig, as `vift-train` takes them on a CPU."""
    recipe = yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
    fields = {name: value for name, value in recipe.items() if name not in ROW_KEYS}
    import torch

    fields |= {
        "warmup_steps": 0.03,  # a share: the arms differ in length
        "use_cpu": True,
        "bf16": bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()),
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 10,
    }
    return fields


def check_recipe(work: Path) -> None:
    """A work folder belongs to one recipe."""
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(RECIPES.glob("*.yaml")))).hexdigest()[:16]
    mark = work / "recipe.json"
    if mark.exists() and (found := json.loads(mark.read_text())["sha256"]) != digest:
        raise ValueError(
            f"{work} holds steps of another recipe ({found}, now {digest}): remove it or name another --work"
        )
    work.mkdir(parents=True, exist_ok=True)
    write_json(mark, {"sha256": digest})


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("runs/paper"), help="where steps keep their results")
    parser.add_argument("--output", type=Path, default=Path("docs/results/paper"), help="where page, plots and figures go")
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
            check_recipe(args.work)
            start = time.monotonic()
            Runner(plan(args.seeds), args.work, args.jobs).run()
            print(f"all steps done, {(time.monotonic() - start) / 60:.0f} min", flush=True)
        from .page import write_page

        write_page(args.work, args.output, args.seeds)
        print(f"wrote {args.output}")
    except ValueError as error:
        print(f"vift_studies.paper.plan: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
