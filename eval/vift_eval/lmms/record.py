"""The section `vift` of a results file: which model was asked, under which settings, and which requests failed.

`tasks` of a record: task -> {"settings": [{"fusion", "generation"}], "requests": count, "failed": [{"doc_id",
"error"}]}.
"""

import functools
import importlib.metadata

import torch

from ..engine import Request, describe
from ..files import weights_sha256

PACKAGES = ("vift", "torch", "transformers", "lmms-eval", "datasets", "pillow")


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def new_record(pretrained: str, revision: str | None, model) -> dict:
    """The record of a model that was asked nothing yet; of a model on the Hub the revision says which weights."""
    return {
        "model": {
            "pretrained": pretrained,
            "revision": revision or getattr(model.config, "_commit_hash", None),
            "weights_sha256": weights_sha256(pretrained),
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": str(model.device),
        },
        "packages": {name: version(name) for name in PACKAGES},
        "tasks": {},
    }


def of_task(tasks: dict, name: str) -> dict:
    return tasks.setdefault(name, {"settings": [], "requests": 0, "failed": []})


def note(tasks: dict, fusion, request: Request, instances) -> None:
    """Counts `instances` of a batch, asked under `fusion` (resolved) and `request`."""
    settings = {
        "fusion": None if fusion is None else describe(fusion),
        "generation": request.generation | {"max_new_tokens": request.max_new_tokens, "until": request.until},
    }
    for instance in instances:
        task = of_task(tasks, instance.task_name)
        task["requests"] += 1
        if settings not in task["settings"]:
            task["settings"].append(settings)


def merged(records: list[dict]) -> dict:
    """The `tasks` of all ranks as one."""
    tasks: dict = {}
    for name, mine in (item for record in records for item in record.items()):
        task = of_task(tasks, name)
        task["settings"] += [one for one in mine["settings"] if one not in task["settings"]]
        task["requests"] += mine["requests"]
        task["failed"] += mine["failed"]
    return tasks


def with_record(evaluate):
    """lmms-eval has no place where a model could add to the results, so its `evaluate` is wrapped."""

    @functools.wraps(evaluate)
    def wrapped(lm, *args, **kwargs):
        results = evaluate(lm, *args, **kwargs)
        if (record := getattr(lm, "record", None)) is None:  # another model
            return results
        records = [record["tasks"]]
        if torch.distributed.is_initialized():
            records = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(records, record["tasks"])
        if results is not None:
            results["vift"] = record | {"tasks": merged(records)}
        return results

    return wrapped
