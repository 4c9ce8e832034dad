"""Grids of fusion settings on any lmms-eval task.

    vift-sweep --models checkpoints/vift-micro --tasks vift_micro_visual --include_path eval/tasks --limit 400 \
        --beta 0 0.1 0.2 0.3 0.5 0.8 1 --layers 0:2 2:4 4:6 6:8 --output runs/sweep

Axes: models, alpha (1 where none is given), beta (or dose), layers, rule, span; everything else is as the model's
config says. Pictures, prompts and picture features are computed once per batch and used by every setting; settings
that are the same fusion (beta 0 in any band) are asked once.
Writes to --output: `answers.jsonl` while it runs (the same command goes on where a killed one stopped), then
`results.json`, `results.parquet`, `report.md` and plots. Scores come from lmms-eval itself, answer by answer as if
each setting had been run alone.
"""

import argparse
import contextlib
import io
import itertools
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

from vift_hub.pictures import whole_pictures

from ..cli import OneLineParser, UserError, first_line, run
from ..files import command_line, made_by, read_json, weights_sha256, write_json
from ..models import model_name


def build_parser() -> argparse.ArgumentParser:
    parser = OneLineParser("vift-sweep", __doc__)
    parser.add_argument("--models", nargs="+", required=True, help="folders or Hub ids of VIFT models")
    parser.add_argument("--tasks", nargs="+", required=True, help="tasks or groups of lmms-eval that generate text")
    parser.add_argument("--include_path", help="folder with more tasks, such as eval/tasks")
    parser.add_argument("--output", type=Path, required=True, help="folder of this sweep")
    parser.add_argument("--alpha", nargs="+", type=float, default=[1.0])
    parser.add_argument("--beta", nargs="+", type=float)
    parser.add_argument("--dose", nargs="+", type=float, help="instead of --beta: beta times number of fused layers")
    parser.add_argument("--layers", nargs="+", default=[], help="bands such as 0:4, or fractions of the top")
    parser.add_argument("--rule", nargs="+", default=[])
    parser.add_argument("--span", nargs="+", default=[])
    parser.add_argument("--limit", type=int, help="documents of each task")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--device")
    parser.add_argument("--dtype", default="auto")
    return parser


def grid(args: argparse.Namespace) -> list[dict]:
    """The settings as keywords of `generate()`, in the order of the axes."""
    if args.beta and args.dose:
        raise UserError("--beta and --dose are two ways to say the same; give one")
    layers = [float(band) if ":" not in band else band for band in args.layers]
    axes = {
        "fusion_rule": args.rule,
        "fusion_span": args.span,
        "fusion_layers": layers,
        "alpha": args.alpha,
        "beta" if not args.dose else "dose": args.dose or args.beta or [],
    }
    axes = {name: values for name, values in axes.items() if values}
    return [dict(zip(axes, values)) | {"fusion": True} for values in itertools.product(*axes.values())]


def same_fusion(settings) -> str:
    """Equal for settings that give equal answers: without effect (alpha 1, beta 0) they are all the unfused model."""
    from ..engine import describe

    if settings.alpha == 1.0 and settings.beta == 0.0 and settings.rule != "independent":
        return "unfused"
    return json.dumps(describe(settings))


class Answers:
    """`answers.jsonl`: one line per (model, batch, setting), in any order; a line cut off by a kill is dropped."""

    def __init__(self, path: Path):
        self.path, self.lines = path, {}
        if path.exists():
            text = path.read_text(encoding="utf-8")
            whole = text[: text.rfind("\n") + 1]
            if whole != text:
                path.write_text(whole, encoding="utf-8")
            for line in whole.splitlines():
                entry = json.loads(line)
                self.lines[entry["model"], entry["batch"], entry["setting"]] = entry["answers"]

    def add(self, model: int, batch: int, setting: int, answers: list) -> None:
        self.lines[model, batch, setting] = answers
        entry = {"model": model, "batch": batch, "setting": setting, "answers": answers}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def of(self, model: int, setting: int) -> dict:
        """(task, document) -> [text, output tokens, truncated]."""
        return {
            (task, doc): rest
            for (m, _, s), answers in self.lines.items()
            if (m, s) == (model, setting)
            for task, doc, *rest in answers
        }


def load_tasks(names: list[str], include_path: str | None) -> dict:
    """lmms-eval's task objects in the form for chat models."""
    from lmms_eval.tasks import TaskManager, get_task_dict

    if include_path is not None and not Path(include_path).is_dir():
        raise UserError(f"--include_path={include_path} is not a folder")
    own = TaskManager("ERROR", include_path=include_path, include_defaults=False, model_name="vift")
    # lmms-eval's own thousands of tasks take seconds to index, so only when one of them is named
    manager = own if set(names) <= set(own.all_tasks) else TaskManager("ERROR", include_path, model_name="vift")
    if missing := [name for name in names if name not in manager.all_tasks]:
        raise UserError(f"--tasks: {', '.join(missing)} not found (in lmms-eval and --include_path={include_path})")
    try:
        return get_task_dict(names, manager, "chat")
    except Exception as error:  # data that is not there raises whatever its reader raises, after lmms-eval's retries
        attempt = getattr(error, "last_attempt", None)
        cause = error if attempt is None else attempt.exception()
        raise UserError(f"--tasks={' '.join(names)}: {first_line(cause)}") from error


def prepare(spec: dict, output: Path) -> None:
    """Writes `sweep.json`; or finds it equal, so that the sweep goes on."""
    path = output / "sweep.json"
    if path.exists():
        before = read_json(path)
        for name in spec:
            if before.get(name) != spec[name]:
                raise UserError(
                    f"--output={output} holds another sweep: its {name} is {before.get(name)}, now {spec[name]}; "
                    "choose another folder"
                )
        return
    output.mkdir(parents=True, exist_ok=True)
    write_json(path, spec)


@whole_pictures()
def ask(lm, number: int, requests: list, settings: list[dict], leaders: list[int], answers: Answers, bar) -> None:
    """Asks every request under every setting that leads its class of equal ones."""
    engine = lm.engine
    kwargs = [lm._generation_kwargs(request) for request in requests]
    for batch, (request, members) in enumerate(lm._batches(requests, kwargs)):
        missing = [s for s in leaders if (number, batch, s) not in answers.lines]
        bar.update((len(leaders) - len(missing)) * len(members))
        if not missing:
            continue
        chosen = [requests[i] for i in members]
        inputs = engine.with_features(engine.inputs([lm._prompt(lm._chat(one)) for one in chosen]))
        for s in missing:
            replies = engine.generate(inputs, replace(request, fusion=settings[s]))
            lines = [[q.task_name, q.doc_id, a.text, a.output_tokens, a.truncated] for q, a in zip(chosen, replies)]
            answers.add(number, batch, s, lines)
            bar.update(len(members))


def score(task_dict: dict, answers: dict, limit: int | None, output: Path) -> dict:
    """lmms-eval's own scores of answers that are already there."""
    from lmms_eval import evaluator
    from lmms_eval.api.model import lmms

    class Replay(lmms):
        is_simple = False

        def generate_until(self, requests):
            return [answers[request.task_name, request.doc_id][0] for request in requests]

        def loglikelihood(self, requests):
            raise NotImplementedError

        generate_until_multi_round = loglikelihood

    options = argparse.Namespace(process_with_media=False, reasoning_tags=None, output_path=str(output))
    return evaluator.evaluate(
        lm=Replay(), task_dict=task_dict, limit=limit, log_samples=False, bootstrap_iters=1000, cli_args=options
    )


def rows_of(result: dict, answers: dict, model: str, settings: dict, resolved) -> list[dict]:
    """One row per (task, metric) of one setting: its axes, value, standard error, share of failing answers."""
    from ..answers.outcomes import SIGNS, signs
    from ..lmms.results import scores

    rows = []
    for task, metrics in result["results"].items():
        mine = [one for (name, _), one in answers.items() if name == task]
        if not mine:
            continue  # a group
        shown = [signs(text) for text, *_ in mine]
        rates = {f"rate_{sign}": sum(sign in one for one in shown) / len(mine) for sign in SIGNS}
        rates["rate_truncated"] = sum(truncated for *_, truncated in mine) / len(mine)
        axes = {
            "alpha": resolved.alpha,
            "beta": resolved.beta,
            "dose": resolved.beta * len(resolved.layers),
            "layers": str(settings.get("fusion_layers", "config's")),
            "num_layers": len(resolved.layers),
            "rule": resolved.rule,
            "span": resolved.span,
            "answer": resolved.answer,
        }
        for metric, (value, error) in scores(metrics).items():
            figures = {"metric": metric, "value": value, "stderr": error, "n": len(mine)}
            rows.append({"model": model, "task": task} | figures | axes | rates)
    return rows


def sweep(args: argparse.Namespace, command: str) -> dict:
    """Runs the grid and returns what `results.json` holds."""
    os.environ["TQDM_DISABLE"] = "1"  # lmms-eval's bars; ours says otherwise
    from loguru import logger
    from tqdm import tqdm

    from ..engine import Request
    from ..lmms.model import VIFTChat

    logger.disable("lmms_eval")
    settings = grid(args)
    task_dict = load_tasks(args.tasks, args.include_path)
    tasks = flat(task_dict)
    for name, task in tasks.items():
        if task.OUTPUT_TYPE != "generate_until":
            raise UserError(f"--tasks: {name} is a task of type {task.OUTPUT_TYPE}; a sweep takes generate_until")
    spec = {
        "models": args.models,
        "weights_sha256": [weights_sha256(model) for model in args.models],
        "tasks": sorted(tasks),
        "limit": args.limit,
        "batch_size": args.batch_size,
        "dtype": args.dtype,
        "settings": settings,
    }
    prepare(spec, args.output)
    answers = Answers(args.output / "answers.jsonl")
    requests = []
    with contextlib.redirect_stderr(io.StringIO()):
        for task in tasks.values():
            task.build_all_requests(limit=args.limit)
            requests += task.instances
    rows, seconds, cpu = [], time.monotonic(), time.process_time()
    bar = None
    for number, path in enumerate(args.models):
        lm = VIFTChat(path, dtype=args.dtype, device=args.device, batch_size=args.batch_size)
        lm.task_dict = {name: task.dataset for name, task in tasks.items()}
        resolved = [lm.engine.settings(Request(1, fusion=setting)) for setting in settings]
        first: dict[str, int] = {}
        leader = [first.setdefault(same_fusion(one), s) for s, one in enumerate(resolved)]
        leaders = sorted(set(leader))
        if bar is None:
            total = len(args.models) * len(leaders) * len(requests)
            every = 0.1 if sys.stderr.isatty() else 30  # seconds; in a log file, a line now and then
            bar = tqdm(total=total, unit="answer", disable=False, mininterval=every, smoothing=0.05)
        bar.set_description(model_name(path))
        ask(lm, number, requests, settings, leaders, answers, bar)
        lm.clean()
        scored: dict[int, tuple] = {}
        for s in leaders:
            replies = answers.of(number, s)
            with contextlib.redirect_stderr(io.StringIO()):
                scored[s] = score(task_dict, replies, args.limit, args.output), replies
        for s, setting in enumerate(settings):
            rows += rows_of(*scored[leader[s]], model_name(path), setting, resolved[s])
    bar.close()
    return {
        "made": made_by(command, *args.models),
        "spec": spec,
        "asked": len(leaders),
        "seconds": round(time.monotonic() - seconds, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "rows": rows,
    }


def flat(task_dict: dict) -> dict:
    """Name -> task, groups opened."""
    tasks: dict = {}
    for name, task in task_dict.items():
        tasks |= flat(task) if isinstance(task, dict) else {name: task}
    return tasks


def write_sweep(args: argparse.Namespace, command: str) -> None:
    if args.limit is not None and args.limit < 1:
        raise UserError(f"--limit={args.limit} must be at least 1")
    from .report import write

    for path in write(sweep(args, command), args.output):
        print(f"wrote {path}")


def main(argv: list[str] | None = None) -> int:
    args, command = build_parser().parse_args(argv), command_line("vift-sweep", argv)
    return run("vift-sweep", write_sweep, args, command, stopped="stopped; the same command goes on from here")


if __name__ == "__main__":
    sys.exit(main())
