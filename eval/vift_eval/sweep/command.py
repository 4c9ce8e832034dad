"""Grids of fusion settings on any lmms-eval task.

    vift sweep --model my-model --tasks vift_micro_visual --limit 400 --beta 0 0.1 0.2 0.3 0.5 0.8 1 \\
        --layers 0:2 2:4 4:6 6:8 --output runs/sweep

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

from vift_hub.cli import OneLineParser, UserError, add_model, add_running, first_line, run
from vift_hub.pictures import whole_pictures

from ..files import command_line, files_sha256, made_by
from ..models import TASKS, config_of, model_name
from .record import Record, requests_sha256


def build_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        "vift sweep", __doc__, old={"--models": "--model"}, needed=("--model", "--tasks", "--output")
    )
    add_model(parser, default=None, nargs="+", help="folders or Hub ids of VIFT models")
    parser.add_argument("--tasks", nargs="+", help="tasks or groups of lmms-eval that generate text")
    parser.add_argument("--include-path", help="folder with more tasks (VIFT's own are always found)")
    parser.add_argument("--output", type=Path, help="folder of this sweep; the same command goes on in it")
    parser.add_argument("--alpha", nargs="+", type=float, default=[1.0], help="weights of the image run (default 1)")
    parser.add_argument("--beta", nargs="+", type=float, help="weights of the text run (default: the model's)")
    parser.add_argument("--dose", nargs="+", type=float, help="instead of --beta: beta times number of fused layers")
    parser.add_argument("--layers", nargs="+", default=[], help="bands such as 0:4, or fractions of the top")
    parser.add_argument("--rule", nargs="+", default=[], help="cascade, additive or independent")
    parser.add_argument("--span", nargs="+", default=[], help="positions written: all, after_image or reference")
    parser.add_argument("--limit", type=int, help="ask so many documents of each task (default: all)")
    add_running(parser)
    return parser


def grid(args: argparse.Namespace) -> list[dict]:
    """The settings as keywords of `generate()`, in the order of the axes."""
    if args.beta and args.dose:
        raise UserError("--beta and --dose are two ways to say the same; give one")
    try:
        layers = [float(band) if ":" not in band else band for band in args.layers]
    except ValueError as error:
        raise UserError(f"--layers={' '.join(args.layers)}: bands such as 0:4, or fractions of the top") from error
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


def load_tasks(names: list[str], include_path: str | None) -> dict:
    """lmms-eval's task objects in the form for chat models."""
    from lmms_eval.tasks import TaskManager, get_task_dict

    if include_path is not None and not Path(include_path).is_dir():
        raise UserError(f"--include-path={include_path} is not a folder")
    places = [str(TASKS), *([] if include_path is None else [include_path])]
    own = TaskManager("ERROR", include_path=places, include_defaults=False, model_name="vift")
    # lmms-eval's own thousands of tasks take seconds to index, so only when one of them is named
    manager = own if set(names) <= set(own.all_tasks) else TaskManager("ERROR", places, model_name="vift")
    if missing := [name for name in names if name not in manager.all_tasks]:
        raise UserError(f"--tasks: {', '.join(missing)} not found (in lmms-eval and {' and '.join(places)})")
    try:
        return get_task_dict(names, manager, "chat")
    except Exception as error:  # data that is not there raises whatever its reader raises, after lmms-eval's retries
        attempt = getattr(error, "last_attempt", None)
        cause = error if attempt is None else attempt.exception()
        raise UserError(f"--tasks={' '.join(names)}: {first_line(cause)}") from error


@whole_pictures()
def ask(lm, number: int, requests: list, settings: list[dict], leaders: list[int], answers: Record, bar) -> None:
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
        record = {"tasks": {}}  # in which `with_record` counts the judgements

        def generate_until(self, requests):
            return [answers[request.task_name, request.doc_id][0] for request in requests]

        def loglikelihood(self, requests):
            raise NotImplementedError

        generate_until_multi_round = loglikelihood

    options = argparse.Namespace(process_with_media=False, reasoning_tags=None, output_path=str(output))
    result = evaluator.evaluate(
        lm=Replay(), task_dict=task_dict, limit=limit, log_samples=False, bootstrap_iters=1000, cli_args=options
    )
    for name, task in result["vift"]["tasks"].items():
        if failed := task.get("judge", {}).get("failed"):
            judge = f"{name}: the judge failed on {failed} of {task['judge']['asked']} documents"
            raise UserError(f"--tasks: {judge}; the answers are kept, the same command asks it again")
    return result


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
    settings = grid(args)
    found = [config_of(path) for path in args.model]
    import torch
    from loguru import logger
    from tqdm import tqdm

    from modeling_vift import VIFTConfig, resolve_fusion

    from ..lmms.model import VIFTChat
    from ..lmms.record import PACKAGES, folder_of, version

    logger.disable("lmms_eval")
    task_dict = load_tasks(args.tasks, args.include_path)
    tasks = flat(task_dict)
    for name, task in tasks.items():
        if task.OUTPUT_TYPE != "generate_until":
            raise UserError(f"--tasks: {name} is a task of type {task.OUTPUT_TYPE}; a sweep takes generate_until")
    configs = [VIFTConfig.from_dict(one) for one in found]
    resolved = [[resolve_fusion(config, **setting) for setting in settings] for config in configs]
    requests = []
    with contextlib.redirect_stderr(io.StringIO()):
        for task in tasks.values():
            task.build_all_requests(limit=args.limit)
            requests += task.instances
    chats = (one.args[1](tasks[one.task_name].dataset[one.args[5]][one.args[3]]) for one in requests)
    with whole_pictures():
        asked = requests_sha256(chats)
    spec = {
        "models": args.model,
        "files": {path: files_sha256(folder_of(path)) for path in args.model},
        "tasks": sorted(tasks),
        "requests": asked,
        "generation": {name: task.instances[0].args[2] for name, task in tasks.items() if task.instances},
        "limit": args.limit,
        "batch_size": args.batch_size,
        "device": args.device or ("cuda" if torch.cuda.is_available() else "cpu"),
        "dtype": args.dtype,
        "packages": {name: version(name) for name in PACKAGES},
        "settings": settings,
    }
    answers = Record(args.output, spec)
    first: list[dict[str, int]] = [{} for _ in args.model]
    leader = [[seen.setdefault(same_fusion(one), s) for s, one in enumerate(r)] for seen, r in zip(first, resolved)]
    leaders = [sorted(set(one)) for one in leader]
    running = {name: getattr(args, name) for name in ("dtype", "device", "batch_size")}
    rows, seconds, cpu = [], time.monotonic(), time.process_time()
    total = len(requests) * sum(map(len, leaders))
    every = 0.1 if sys.stderr.isatty() else 30  # seconds; in a log file, a line now and then
    with tqdm(total=total, unit="answer", disable=False, mininterval=every, smoothing=0.05) as bar:
        for number, path in enumerate(args.model):
            lm = VIFTChat(path, trust_remote_code=args.trust_remote_code, **running)
            lm.task_dict = {name: task.dataset for name, task in tasks.items()}
            bar.set_description(model_name(path))
            ask(lm, number, requests, settings, leaders[number], answers, bar)
            lm.clean()
            scored: dict[int, tuple] = {}
            for s in leaders[number]:
                replies = answers.of(number, s)
                with contextlib.redirect_stderr(io.StringIO()):
                    scored[s] = score(task_dict, replies, args.limit, args.output), replies
            for s, setting in enumerate(settings):
                rows += rows_of(*scored[leader[number][s]], model_name(path), setting, resolved[number][s])
    return {
        "made": made_by(command, *args.model),
        "spec": spec,
        "asked": len(leaders[-1]),
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

    *others, page = write(sweep(args, command), args.output)
    print(*(f"wrote {path}" for path in others), f"wrote {page}: open it, the best settings are on top", sep="\n")


def main(argv: list[str] | None = None) -> int:
    args, command = build_parser().parse_args(argv), command_line("vift sweep", argv)
    on = "stopped; the same command goes on from here"
    return run("vift sweep", write_sweep, args, command, extra="eval", stopped=on)


if __name__ == "__main__":
    sys.exit(main())
