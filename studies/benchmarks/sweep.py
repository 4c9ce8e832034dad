"""`vift-sweep` beside the naive loop of separate runs: same answers, and how much less time.

    python studies/benchmarks/sweep.py --json docs/results/sweep/sweep.json           # 28 settings, 400 questions
    python studies/benchmarks/sweep.py --processes 4                               # four of the 28 commands, scaled up

Three ways to ask 7 betas x 4 bands on the micro-world's validation questions:

- sweep: one `vift-sweep`, from start to report;
- commands: 28 times `python -m lmms_eval`, one a setting (with --processes K, K of them evenly spread, times 28/K);
- in one process: model and questions loaded once, nothing scored. For each batch and setting in turn, the plain way
  (render, preprocess, `generate()`) and the sweep's way (`vift_eval.sweep.reuse`), so that both see the same machine.

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
from contextlib import contextmanager
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


def in_one_process(args) -> tuple[dict, dict, int]:
    """(seconds by way, setting -> document -> answer of the plain way, number of answers that differ between ways)."""
    from dataclasses import replace

    from vift_eval.lmms.model import VIFTChat
    from vift_eval.sweep.command import load_tasks, same_fusion
    from vift_eval.sweep.reuse import Shared, answer

    (task,) = load_tasks([TASK], str(ROOT / "eval/tasks")).values()
    task.build_all_requests(limit=args.limit)
    lm = VIFTChat(args.model, batch_size=args.batch_size)
    lm.task_dict = {TASK: task.dataset}
    engine, requests = lm.engine, task.instances
    seconds = {way: {"cpu": 0.0, "wall": 0.0} for way in ("plain", "reuse")}
    answers: dict = {}
    different = 0

    @contextmanager
    def timed(way):
        cpu, wall = time.process_time(), time.monotonic()
        yield
        seconds[way]["cpu"] += time.process_time() - cpu
        seconds[way]["wall"] += time.monotonic() - wall

    for request, members in lm._batches(requests, [lm._generation_kwargs(one) for one in requests]):
        chosen = [requests[i] for i in members]
        with timed("reuse"):
            inputs = engine.inputs([lm._prompt(lm._chat(one)) for one in chosen])
            shared, known = Shared.of(engine, inputs, range(8)), [[] for _ in chosen]
        done: dict = {}
        for band in BANDS:
            for beta in BETAS:
                fusion = {"fusion": True, "alpha": 1.0, "beta": beta, "fusion_layers": band}
                with timed("plain"):
                    again = engine.inputs([lm._prompt(lm._chat(one)) for one in chosen])
                    expected = engine.generate(again, replace(request, fusion=fusion))
                with timed("reuse"):
                    same = same_fusion(engine.settings(replace(request, fusion=fusion)))
                    if same not in done:
                        given = {"fusion": False} if same == "unfused" else fusion
                        done[same] = answer(engine, shared, replace(request, fusion=given), known)
                        for row, one in zip(known, done[same]):
                            row[:] = [one, *(other for other in row if other.text != one.text)]
                different += sum(one != other for one, other in zip(expected, done[same]))
                entry = answers.setdefault(f"{beta}/{band}", {})
                entry.update({one.doc_id: two.text for one, two in zip(chosen, expected)})
    return seconds, answers, different


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
            "vift_eval.sweep.command",
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
        index = int((number + 0.5) * scale)
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
                f"pretrained={args.model},alpha=1.0,beta={beta},fusion_layers={band}",
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

    seconds, answers, different = in_one_process(args)
    leader = {}  # the first setting of each class of equal ones, whose lines the file has
    lines = [json.loads(line) for line in (args.folder / "sweep" / "answers.jsonl").read_text().splitlines()]
    for line in lines:
        leader.setdefault(line["setting"], {}).update({doc: text for _, doc, text, *_ in line["answers"]})
    for number, setting in enumerate(results["spec"]["settings"]):
        said = leader[number if number in leader else 0]  # beta 0 is asked once
        expected = answers[f"{setting['beta']}/{setting['fusion_layers']}"]
        assert len(said) == len(expected) == args.limit
        different += sum(said[doc] != text for doc, text in expected.items())

    plain, reuse = seconds["plain"], seconds["reuse"]
    report = {
        "settings": 28,
        "asked": results["asked"],
        "questions": args.limit,
        "batch_size": args.batch_size,
        "answers_compared": 28 * args.limit,
        "answers_different": different,
        "sweep": sweep,
        "commands": naive | {"run": args.processes, "scaled_by": scale},
        "in_one_process": seconds,
        "reuse_factor_commands": {name: naive[name] / sweep[name] for name in sweep},
        "reuse_factor_in_one_process": {name: plain[name] / reuse[name] for name in plain},
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, "
        f"torch {results['torch']}, one thread",
    }
    print(json.dumps(report, indent=1))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
