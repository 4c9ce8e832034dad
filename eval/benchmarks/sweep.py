"""`vift-sweep` beside the naive loop of separate runs: same answers, and how much less time.

    python eval/benchmarks/sweep.py --json docs/sweep.json           # 28 settings, 400 questions
    python eval/benchmarks/sweep.py --processes 4                               # four of the 28 commands, scaled up

Three ways to ask 7 betas x 4 bands on the micro-world's validation questions:

- sweep: one `vift-sweep`, from start to report;
- commands: 28 times `python -m lmms_eval`, one a setting (with --processes K, every 28/K-th of them, times 28/K);
- loop: 28 times in one process with the model loaded once: render, preprocess, `generate()`; no scoring. Compared
  with what the sweep took for asking and scoring in its process (model loading included).

Times are CPU seconds of the processes and wall seconds; on a busy machine only the first mean something.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BETAS = [0.0, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0]
BANDS = ["0:2", "2:4", "4:6", "6:8"]
TASK = "vift_micro_validation"


def children(command: list[str]) -> dict:
    """CPU and wall seconds of a command (its output is kept from the screen)."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if run.returncode:
        raise SystemExit(f"{' '.join(command)}\n{run.stdout[-2000:]}\n{run.stderr[-2000:]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"cpu": cpu, "wall": time.monotonic() - start}


def loop(args) -> tuple[dict, dict]:
    """(times, setting -> document -> answer) of 28 runs in this process."""
    from vift_eval.lmms_model import VIFTChat
    from vift_eval.sweep import load_tasks

    (task,) = load_tasks([TASK], str(ROOT / "eval/tasks")).values()
    task.build_all_requests(limit=args.limit)
    lm = VIFTChat(args.model, batch_size=args.batch_size)
    lm.task_dict = {TASK: task.dataset}
    requests, answers = task.instances, {}
    cpu, wall = time.process_time(), time.monotonic()
    for band in BANDS:
        for beta in BETAS:
            lm.fusion = {"fusion": True, "beta": beta, "fusion_layers": band}
            said = lm.generate_until(requests)
            answers[f"{beta}/{band}"] = {one.doc_id: two.text for one, two in zip(requests, said)}
    return {"cpu": time.process_time() - cpu, "wall": time.monotonic() - wall}, answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="checkpoints/vift-micro")
    parser.add_argument("--limit", type=int, default=400)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--processes", type=int, default=28, help="of the 28 commands, run so many")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "sweep-benchmark")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    shutil.rmtree(args.folder, ignore_errors=True)
    common = ["--include_path", "eval/tasks", "--limit", str(args.limit), "--batch_size", str(args.batch_size)]
    sweep = children(
        [
            sys.executable,
            "-m",
            "vift_eval.sweep",
            "--models",
            args.model,
            "--tasks",
            TASK,
            *common,
            "--beta",
            *map(str, BETAS),
            "--layers",
            *BANDS,
            "--output",
            str(args.folder / "sweep"),
        ]  # fmt: skip
    )
    results = json.loads((args.folder / "sweep" / "results.json").read_text())
    table = {(row["beta"], row["layers"]): row["value"] for row in results["rows"] if row["metric"] == "exact_match"}

    naive, scale = {"cpu": 0.0, "wall": 0.0}, 28 / args.processes
    for number in range(args.processes):
        index = int(number * scale)
        beta, band = BETAS[index % 7], BANDS[index // 7]
        output = args.folder / f"run-{index}"
        once = children(
            [
                sys.executable,
                "-m",
                "lmms_eval",
                "--model",
                "vift",
                "--model_args",
                f"pretrained={args.model},beta={beta},fusion_layers={band}",
                "--tasks",
                TASK,
                *common,
                "--output_path",
                str(output),
            ]  # fmt: skip
        )
        (path,) = output.glob("*/*_results.json")
        value = json.loads(path.read_text())["results"][TASK]["exact_match,none"]
        assert abs(value - table[beta, band]) < 1e-9, (beta, band, value, table[beta, band])
        naive = {name: naive[name] + scale * once[name] for name in naive}

    in_process, answers = loop(args)
    leader = {}  # the first setting of each class of equal ones, whose lines the file has
    lines = [json.loads(line) for line in (args.folder / "sweep" / "answers.jsonl").read_text().splitlines()]
    for line in lines:
        leader.setdefault(line["setting"], {}).update({doc: text for _, doc, text, *_ in line["answers"]})
    different = 0
    for number, setting in enumerate(results["spec"]["settings"]):
        said = leader[number if number in leader else 0]  # beta 0 is asked once
        expected = answers[f"{setting['beta']}/{setting['fusion_layers']}"]
        assert len(said) == len(expected) == args.limit
        different += sum(said[doc] != text for doc, text in expected.items())

    asking = {"cpu": results["cpu_seconds"], "wall": results["seconds"]}
    report = {
        "settings": 28,
        "asked": results["asked"],
        "questions": args.limit,
        "batch_size": args.batch_size,
        "answers_compared": 28 * args.limit,
        "answers_different": different,
        "sweep": sweep,
        "commands": naive | {"run": args.processes, "scaled_by": scale},
        "sweep_in_its_process": asking,
        "loop_in_one_process": in_process,
        "reuse_factor_commands": {name: naive[name] / sweep[name] for name in sweep},
        "reuse_factor_loop": {name: in_process[name] / asking[name] for name in asking},
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, "
        f"torch {results['torch']}, one thread",
    }
    print(json.dumps(report, indent=1))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
