"""The section `vift` of a results file: which model was asked, under which settings, and which requests failed.

`tasks` of a record: task -> {"settings": [{"fusion", "generation"}], "requests": count, "documents": count of those
asked, "failed": [{"doc_id", "error"}], and where a judge marks "judge": {"asked", "judged", "failed"}}. A task with a
failed judgement has no score.
"""

import functools
import importlib.metadata
from pathlib import Path

import torch
from lmms_eval.evaluator_utils import get_task_list
from loguru import logger
from transformers.utils import cached_file

from ..engine import Request, describe
from ..files import weights_sha256
from .judges import counted

PACKAGES = ("vift", "torch", "transformers", "lmms-eval", "datasets", "pillow")


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def folder_of(pretrained: str, revision: str | None = None) -> Path:
    """A model's folder, of a Hub id too."""
    return Path(cached_file(pretrained, "config.json", revision=revision)).parent


def new_record(pretrained: str, revision: str | None, model) -> dict:
    """The record of a model that was asked nothing yet."""
    folder = folder_of(pretrained, revision)
    return {
        "model": {
            "pretrained": pretrained,
            "revision": revision or getattr(model.config, "_commit_hash", None),
            "weights_sha256": weights_sha256(folder),
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": str(model.device),
        },
        "packages": {name: version(name) for name in PACKAGES},
        "tasks": {},
    }


def of_task(tasks: dict, name: str) -> dict:
    return tasks.setdefault(name, {"settings": [], "requests": 0, "documents": set(), "failed": []})


def note(tasks: dict, fusion, request: Request, instances) -> None:
    """Counts `instances` of a batch, asked under `fusion` (resolved) and `request`."""
    settings = {
        "fusion": None if fusion is None else describe(fusion),
        "generation": request.generation | {"max_new_tokens": request.max_new_tokens, "until": request.until},
    }
    for instance in instances:
        task = of_task(tasks, instance.task_name)
        task["requests"] += 1
        task["documents"].add(instance.doc_id)
        if settings not in task["settings"]:
            task["settings"].append(settings)


def merged(records: list[dict]) -> dict:
    """The `tasks` of all ranks as one."""
    tasks: dict = {}
    for name, mine in (item for record in records for item in record.items()):
        task = of_task(tasks, name)
        task["settings"] += [one for one in mine["settings"] if one not in task["settings"]]
        task["requests"] += mine["requests"]
        task["documents"] |= mine["documents"]
        task["failed"] += mine["failed"]
        if "judge" in mine:
            judge = task.setdefault("judge", dict.fromkeys(mine["judge"], 0))
            judge.update({name: count + mine["judge"][name] for name, count in judge.items()})
    return {name: task | {"documents": len(task["documents"])} for name, task in tasks.items()}


def without_scores(results: dict, task: str, judge: dict) -> None:
    """Takes the scores of `task`, and of the groups it is in, from the results."""
    logger.error(f"{task} has no score: the judge failed on {judge['failed']} of {judge['asked']} documents")
    groups = [name for name, members in results["group_subtasks"].items() if task in members]
    for part in ("results", "groups"):
        for name in [task, *groups]:
            if name in results.get(part, {}):
                results[part][name] = {"alias": results[part][name].get("alias", name)}


def with_record(evaluate):
    """lmms-eval has no place where a model could add to the results, so its `evaluate` is wrapped."""

    @functools.wraps(evaluate)
    def wrapped(lm, task_dict, *args, **kwargs):
        if (record := getattr(lm, "record", None)) is None:  # another model
            return evaluate(lm, task_dict, *args, **kwargs)
        if kwargs.get("response_cache") is not None:
            logger.warning("--use_cache is left out: its entries do not say which weights and fusion answered")
            kwargs["response_cache"] = None
        with counted({one.task_name: one.task for one in get_task_list(task_dict)}) as judges:
            results = evaluate(lm, task_dict, *args, **kwargs)
        for name, judge in judges.items():
            of_task(record["tasks"], name)["judge"] = judge
        records = [record["tasks"]]
        if torch.distributed.is_initialized():
            records = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(records, record["tasks"])
        if results is not None:
            results["vift"] = record | {"tasks": merged(records)}
            for name, task in results["vift"]["tasks"].items():
                if task.get("judge", {}).get("failed"):
                    without_scores(results, name, task["judge"])
        return results

    return wrapped
