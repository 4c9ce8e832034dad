"""The tidy table of every study: one row per answer; and scores, paired differences and words made of it.

Columns: seed, condition, question (its number), family, outcome, tokens (decoded), ms (where it was timed), and what
else identifies the setting, such as layers, dose, alpha, weight. A *record* is a dict of the columns that identify a
setting and of its figures; results files hold lists of records.
"""

import argparse
import os
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from datasets import disable_progress_bars

from vift_eval.answers.bootstrap import difference, interval
from vift_eval.answers.conditions import ask
from vift_eval.answers.generate import decoded
from vift_eval.answers.outcomes import outcome
from vift_eval.files import write_json
from vift_microworld import FAMILIES

SHORT = 4  # tokens: answers have at most two words, and a caption shows by its second
# keywords of conditions that are columns
COLUMNS = {"fusion_layers": "layers", "dose": "dose", "alpha": "alpha", "weight": "weight", "weights": "weights"}
FAILURES = ("caption", "wrong_kind", "garbage", "empty")
UNTESTABLE = "not testable here"  # the verdict where nothing is compared


def held_out(seed: int) -> tuple[str, ...]:
    """The question families that the visual-instruction runs of this seed never see: three splits, one per seed."""
    return tuple(FAMILIES)[seed % 3 :: 3]


def seen(seed: int) -> tuple[str, ...]:
    return tuple(family for family in FAMILIES if family not in held_out(seed))


def answer_rows(questions, answers: list, condition: str, **columns) -> pd.DataFrame:
    """One row per answer; `columns` are further columns, a value for all rows or one each."""
    return pd.DataFrame({
        **columns, "condition": condition, "question": range(len(answers)), "family": list(questions["family"]),
        "outcome": [outcome(answer.text, right) for answer, right in zip(answers, questions["answer"])],
        "tokens": [decoded(answer) for answer in answers],
    })  # fmt: skip


def ask_rows(model, processor, questions, condition: str, columns: dict, **kwargs) -> pd.DataFrame:
    """
    Asks under a condition, and prints how it went.

    Args:
        columns: further columns and their values, such as the seed.
        kwargs: of the condition; those in `COLUMNS` become columns.
    """
    answers = ask(model, processor, questions, condition, max_new_tokens=SHORT, **kwargs)
    setting = {column: kwargs[name] for name, column in COLUMNS.items() if name in kwargs}
    repeated = {name: [value] * len(answers) if isinstance(value, list) else value for name, value in setting.items()}
    rows = answer_rows(questions, answers, condition, **columns, **repeated)
    shares = rows["outcome"].value_counts(normalize=True)
    words = " ".join(map(str, [*columns.values(), condition, *(f"{name} {value}" for name, value in setting.items())]))
    print(f"{words}: right {shares.get('right', 0):.1%}, captions {shares.get('caption', 0):.1%}", flush=True)
    return rows


def hits(rows: pd.DataFrame) -> list[np.ndarray]:
    """1 for a right answer, else 0: one array per seed, in the order of the questions."""
    return [group["outcome"].eq("right").to_numpy(float) for _, group in rows.groupby("seed")]


def pooled(values: list[np.ndarray], same_questions: bool = True) -> np.ndarray:
    """(seeds, questions) where all seeds answered the same questions, else all answers in a row."""
    same = same_questions and len({len(one) for one in values}) == 1
    return np.array(values) if same else np.concatenate(values)


def score(rows: pd.DataFrame) -> dict:
    """Of the answers under one setting: accuracy by seed, mean with its interval, and shares of failures."""
    values, shares = hits(rows), rows["outcome"].value_counts(normalize=True)
    return {
        "seeds": [round(float(one.mean()), 4) for one in values],
        "mean": round(float(np.mean([one.mean() for one in values])), 4),
        "ci95": interval(pooled(values)),
        **{name: round(float(shares.get(name, 0.0)), 4) for name in FAILURES},
    }


def paired(first: pd.DataFrame, second: pd.DataFrame) -> dict:
    """Difference of two settings over the same questions: pooled with its interval, and each seed with its own."""
    a, b = hits(first), hits(second)
    return difference(pooled(a), pooled(b)) | {"seeds": [difference(x, y) for x, y in zip(a, b)]}


def settings_of(rows: pd.DataFrame, columns: list[str]) -> list[tuple[dict, pd.DataFrame]]:
    """(values of the columns that it has, its rows) of each setting, in the order of the rows."""
    columns = [column for column in columns if column in rows]
    groups = rows.groupby(columns, sort=False, dropna=False)
    return [({c: _plain(v) for c, v in zip(columns, key) if not pd.isna(v)}, group) for key, group in groups]


def _plain(value):
    return value.item() if hasattr(value, "item") else value


def pick(records: list[dict], **setting) -> list[dict]:
    return [record for record in records if all(record.get(name) == value for name, value in setting.items())]


def some(records: list[dict], **setting) -> list[dict]:
    """Those of a setting; KeyError, with the setting, where there is none."""
    if not (records := pick(records, **setting)):
        raise KeyError(", ".join(f"{name} {value}" for name, value in setting.items()))
    return records


def one(records: list[dict], **setting) -> dict:
    """The first of `some`."""
    return some(records, **setting)[0]


def percent(value: float, digits: int = 0) -> str:
    return f"{100 * value:.{digits}f}"


def with_interval(record: dict) -> str:
    low, high = record["ci95"]
    return f"{percent(record['mean'], 1)} [{percent(low, 1)}, {percent(high, 1)}]"


def points(delta: dict | None) -> str:
    """A difference with its interval, in points; nothing where there is none."""
    if delta is None:
        return ""
    low, high = delta["ci95"]
    return f"{100 * delta['difference']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def measure(description: str, steps: dict, folders: dict, argv: list[str] | None) -> None:
    """
    The command line of a study's measuring steps.

    Args:
        steps: name -> function of the seeds that returns a table of rows, or what is written as JSON.
        folders: name -> function of the seeds and the folder that it writes.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("step", choices=(*folders, *steps))
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument(
        "--out", type=Path, required=True, help=f"the file to write ({', '.join(folders)}: the folder)"
    )
    args = parser.parse_args(argv)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    disable_progress_bars()
    if args.step in folders:
        folders[args.step](args.seeds, args.out)
    elif isinstance(result := steps[args.step](args.seeds), pd.DataFrame):
        result.to_parquet(args.out, index=False)
    else:
        write_json(args.out, result)
