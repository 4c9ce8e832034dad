"""`vift-sweep` beside the naive loop of separate runs: same answers, and how much less time.

    python studies/benchmarks/sweep.py --json docs/results/sweep-cost/sweep.json   # 28 settings, 400 questions
    python studies/benchmarks/sweep.py --processes 4                               # four of the 28 commands, scaled up

Three ways to ask 7 betas x 4 bands on the micro-world's validation questions:

- sweep: one `vift-sweep`, from start to report;
- commands: 28 times `python -m lmms_eval`, one per setting (with --processes K, K of them evenly spread, times 28/K);
- in one process: model and questions loaded once, nothing scored. For each batch and setting in turn, the plain way
  (render, preprocess, `generate()`) and the sweep's way, so that both see the same machine.

Times are CPU seconds of the processes and wall seconds; on a busy machine only the first mean something.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from vift_eval.files import command_line, made_by, read_json, write_json

ROOT = Path(__file__).resolve().parents[2]
BETAS = [0.0, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0]
BANDS = ["0:2", "2:4", "4:6", "6:8"]
TASK = "vift_micro_validation"


def run(*command) -> dict:
    """CPU and wall seconds of `python -m ...` (its output is kept from the screen)."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run([sys.executable, "-m", *map(str, command)], cwd=ROOT, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"cpu": cpu, "wall": time.monotonic() - start}


def in_one_process(args) -> tuple[dict, dict, int]:
    """(seconds by way, setting -> document -> answer of the plain way, number of answers that differ between ways)."""
    from vift_eval.lmms.model import VIFTChat
    from vift_eval.sweep.command import load_tasks, same_fusion

    (task,) = load_tasks([TASK], str(ROOT / "eval/tasks")).values()
    task.build_all_requests(limit=args.limit)
    lm = VIFTChat(args.model, batch_size=args.batch_size)
    lm.task_dict = {TASK: task.dataset}
    engine, requests = lm.engine, task.instances
    seconds = {way: {"cpu": 0.0, "wall": 0.0} for way in ("plain", "shared")}
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

        def inputs(chosen=chosen):
            return engine.inputs([lm._prompt(lm._chat(one)) for one in chosen])

        with timed("shared"):
            shared = engine.with_features(inputs())
        done: dict = {}
        for beta, band in ((beta, band) for band in BANDS for beta in BETAS):
            fusion = {"fusion": True, "alpha": 1.0, "beta": beta, "fusion_layers": band}
            with timed("plain"):
                expected = engine.generate(inputs(), replace(request, fusion=fusion), text_stream=None)
            with timed("shared"):
                same = same_fusion(engine.settings(replace(request, fusion=fusion)))
                if same not in done:
                    done[same] = engine.generate(shared, replace(request, fusion=fusion))
            different += sum(one != other for one, other in zip(expected, done[same]))
            entry = answers.setdefault((beta, band), {})
            entry.update({one.doc_id: answer.text for one, answer in zip(chosen, expected)})
    return seconds, answers, different


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="checkpoints/vift-micro")
    parser.add_argument("--limit", type=int, default=400)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--processes", type=int, default=28, help="of the 28 commands, run so many")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "sweep-benchmark")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    shutil.rmtree(args.folder, ignore_errors=True)
    common = ["--tasks", TASK, "--include_path", "eval/tasks", "--limit", args.limit, "--batch_size", args.batch_size]
    sweep = run("vift_eval.sweep.command", "--models", args.model, *common, "--beta", *BETAS, "--layers", *BANDS,
                "--output", args.folder / "sweep")  # fmt: skip
    results = read_json(args.folder / "sweep" / "results.json")
    table = {(row["beta"], row["layers"]): row["value"] for row in results["rows"] if row["metric"] == "exact_match"}

    naive, scale = {"cpu": 0.0, "wall": 0.0}, 28 / args.processes
    for number in range(args.processes):
        index = int((number + 0.5) * scale)
        beta, band = BETAS[index % 7], BANDS[index // 7]
        output = args.folder / f"run-{index}"
        model_args = f"pretrained={args.model},alpha=1.0,beta={beta},fusion_layers={band}"
        once = run("lmms_eval", "--model", "vift", "--model_args", model_args, *common, "--output_path", output)
        (path,) = output.glob("*/*_results.json")
        value = read_json(path)["results"][TASK]["exact_match,none"]
        assert abs(value - table[beta, band]) < 1e-9, (beta, band, value, table[beta, band])
        naive = {name: naive[name] + scale * once[name] for name in naive}

    seconds, expected, different = in_one_process(args)
    swept: dict = {}  # by the first setting of each class of equal ones, whose lines the file has
    for line in (args.folder / "sweep" / "answers.jsonl").read_text().splitlines():
        entry = json.loads(line)
        swept.setdefault(entry["setting"], {}).update({doc: text for _, doc, text, *_ in entry["answers"]})
    for number, setting in enumerate(results["spec"]["settings"]):
        answers = swept[number if number in swept else 0]  # beta 0 is asked once
        plain = expected[setting["beta"], setting["fusion_layers"]]
        assert len(answers) == len(plain) == args.limit
        different += sum(answers[doc] != text for doc, text in plain.items())

    report = {
        "made": made_by(command_line(__file__, argv), args.model),
        "settings": 28,
        "asked": results["asked"],
        "questions": args.limit,
        "batch_size": args.batch_size,
        "answers_compared": 28 * args.limit,
        "answers_different": different,
        "sweep": sweep,
        "commands": naive | {"run": args.processes, "scaled_by": scale},
        "in_one_process": seconds,
        "factor_commands": {name: naive[name] / sweep[name] for name in sweep},
        "factor_in_one_process": {name: seconds["plain"][name] / seconds["shared"][name] for name in sweep},
    }
    print(json.dumps(report, indent=1))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.json, report)


if __name__ == "__main__":
    main()
