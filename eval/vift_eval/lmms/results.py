"""Results files of lmms-eval into a model's repository: `.eval_results/*.yaml` and the card's `model-index`.

    vift card --results results/*/*_results.json --model my-model --repo my-org/my-model

Every number comes from a results file that the model `vift` made (its section `vift` says with which weights and
fusion). Refused: files of other models, of other or unknown weights than --model's, and runs that are not whole: a
part of the questions (`--limit`, `--offset`), failed requests, failed judgements.
`.eval_results` (huggingface.co/docs/hub/eval-results) is for benchmarks on the Hub and holds each task's first metric;
`model-index` holds every metric of every task.
"""

import argparse
import json
import re
import sys
from pathlib import Path

import yaml
from huggingface_hub import CardData, EvalResult, EvalResultEntry, eval_result_entries_to_yaml
from huggingface_hub.repocard_data import eval_results_to_model_index

from vift_hub import card
from vift_hub.cli import OneLineParser, UserError, first_line, run

from ..files import weights_sha256


def read(path: Path, weights: str | None) -> dict:
    """
    A results file, checked.

    Args:
        path: `..._results.json`, written by lmms-eval with `--output_path`.
        weights: SHA-256 of the weights that the results must be of.

    Raises:
        ValueError: no results file of the model `vift`, another model's weights, or a run that is not whole.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        record, tasks, counts = results["vift"], results["results"], results["n-samples"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no results file of lmms-eval's model vift ({first_line(error)})") from error
    own = record["model"]["weights_sha256"]
    if own is None or own != weights:
        named = [(one or "unknown")[:12] for one in (own, weights)]
        raise ValueError(f"{path} has results of weights {named[0]}, the model's are {named[1]}")
    for task, count in counts.items():
        entry = record["tasks"].get(task, {"requests": 0, "failed": []})
        asked = min(entry.get("documents", entry["requests"]), count["effective"])
        if asked < count["original"]:
            raise ValueError(f"{path}: {task} asked {asked} of {count['original']} questions")
        judge = entry.get("judge", {"asked": 0, "failed": 0})
        if entry["failed"] or judge["failed"] or not scores(tasks.get(task, {})):
            failed = f"{len(entry['failed'])} requests and {judge['failed']} of {judge['asked']} judgements"
            raise ValueError(f"{path}: {task} has no whole score: {failed} failed")
    return results | {"results": {name: tasks[name] for name in counts if name in tasks}}


def scores(metrics: dict) -> dict[str, tuple[float, float | None]]:
    """Metric -> (value, standard error if there is one) of a task's `results` as lmms-eval writes them."""
    named = {}
    for key, value in metrics.items():
        metric, comma, filtered = key.partition(",")
        if comma and "_stderr" not in metric and isinstance(value, int | float):
            error = metrics.get(f"{metric}_stderr,{filtered}")
            name = metric if filtered == "none" else f"{metric} ({filtered})"
            named[name] = float(value), float(error) if isinstance(error, int | float) else None
    return named


def metrics_of(results: dict, task: str) -> dict[str, float]:
    """Metric -> value, the task's first metric first."""
    values = {metric: round(value, 4) for metric, (value, _) in scores(results["results"][task]).items()}
    order = [metric["metric"] for metric in results["configs"][task].get("metric_list", [])]
    return dict(sorted(values.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)))


def fusion_of(results: dict, task: str) -> str:
    """How the task was asked, in a line."""
    from ..engine import in_words

    record = results["vift"]["tasks"][task]
    fusions = [settings["fusion"] for settings in record["settings"]]
    words = ["no fusion" if fusion is None else f"fusion {in_words(fusion)}" for fusion in fusions]
    asked, weights = record.get("documents", record["requests"]), results["vift"]["model"]["weights_sha256"][:12]
    words += [f"{asked} questions", f"weights {weights}", f"{card.SCORED}{results['vift']['packages']['lmms-eval']}"]
    return "; ".join(words)


def date_of(results: dict) -> str:
    return re.sub(r"^(\d{4})(\d\d)(\d\d).*", r"\1-\2-\3", str(results["date"]))


def entries(results: dict) -> dict[str, EvalResultEntry]:
    """File name -> entry of `.eval_results`, for tasks whose data are a data set on the Hub."""
    files = {}
    for task in results["results"]:
        dataset, metrics = results["configs"][task].get("dataset_path", ""), metrics_of(results, task)
        if re.fullmatch(r"[\w.-]+/[\w.-]+", dataset) and metrics:
            files[f"{task}.yaml"] = EvalResultEntry(
                dataset_id=dataset,
                task_id=task,
                value=next(iter(metrics.values())),
                date=date_of(results),
                notes=f"{next(iter(metrics))}; {fusion_of(results, task)}",
            )
    return files


def model_index(results: dict) -> list[EvalResult]:
    """Every metric of every task, for the card's `model-index`."""
    index = []
    for task in results["results"]:
        config = results["configs"][task]
        dataset = config.get("dataset_path", task)
        dataset = task if dataset in ("json", "parquet", "csv") else dataset
        for metric, value in metrics_of(results, task).items():
            index.append(
                EvalResult(
                    task_type="image-text-to-text",
                    dataset_type=dataset,
                    dataset_name=f"{task} ({fusion_of(results, task)})",
                    dataset_split=config.get("test_split") or config.get("validation_split"),
                    metric_type=metric,
                    metric_value=value,
                    metric_name=metric.replace("_", " "),
                )
            )
    return index


def write(files: list[Path], folder: Path, repo: str) -> list[Path]:
    """Writes `.eval_results/*.yaml` and README.md's `model-index` into `folder`; returns what was written."""
    weights = weights_sha256(folder)
    all_results = [read(path, weights) for path in files]
    tasks = [task for results in all_results for task in results["results"]]
    if twice := sorted({task for task in tasks if tasks.count(task) > 1}):
        raise ValueError(f"--results: {', '.join(twice)} comes in more than one file; name the one that counts")
    written = []
    for results in all_results:
        for name, entry in entries(results).items():
            path = folder / ".eval_results" / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False), encoding="utf-8")
            written.append(path)
    readme, index = folder / "README.md", [one for results in all_results for one in model_index(results)]
    page = card.read(readme.read_bytes() if readme.exists() else f"# {repo}\n".encode(), readme)
    known = {"library_name": "transformers"} | page.data.to_dict()
    card.without_scores_of_ours(known)  # scores of other origin stay
    for file in set((folder / ".eval_results").glob("*.yaml")) - set(written):
        if card.SCORED in file.read_text(encoding="utf-8"):
            file.unlink()
    for name in dict.fromkeys(one.dataset_name for one in index):  # one by one: the Hub's client joins one data set's
        scores = eval_results_to_model_index(repo.split("/")[-1], [one for one in index if one.dataset_name == name])
        known = card.merge({"model-index": scores}, known)
    page.data = CardData(**known)
    page.save(readme)
    return [*written, readme]


def write_all(args: argparse.Namespace) -> None:
    if not args.model.is_dir():
        raise UserError(f"--model={args.model} is not a folder")
    for path in write(args.results, args.model, args.repo):
        print(f"wrote {path}")
    print(
        f"next: look at {args.model / 'README.md'}, then vift push --model {args.model} --repo {args.repo} --dry-run"
    )


def build_parser() -> OneLineParser:
    parser = OneLineParser("vift card", __doc__, needed=("--results", "--model", "--repo"))
    parser.add_argument("--results", nargs="+", type=Path, help="results files of lmms-eval")
    parser.add_argument("--model", type=Path, help="folder of the model's repository")
    parser.add_argument("--repo", help="its name on the Hub: user/name or org/name")
    return parser


def main(argv: list[str] | None = None) -> int:
    return run("vift card", write_all, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
