"""What a sweep's folder holds while it runs: `sweep.json`, all that decides an answer, and `answers.jsonl`."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from vift_hub.cli import UserError, first_line
from vift_hub.output import lock

from ..files import read_json, write_json


def requests_sha256(chats: Iterable[list[dict]]) -> str:
    """Of what is asked: the words and the pictures of every chat."""
    digest = hashlib.sha256()
    for content in (message["content"] for chat in chats for message in chat):
        for value in (value for part in content for value in (part.values() if isinstance(part, dict) else part)):
            if isinstance(value, Image.Image):
                digest.update(f"{value.mode}{value.size}".encode() + value.tobytes())
            else:
                digest.update(str(value).encode())
    return digest.hexdigest()[:12]


def difference(before, now, name: str = "") -> str | None:
    """The first thing that differs, by its name, with both values."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in {**before, **now}:
            if told := difference(before.get(key), now.get(key), f"{name}.{key}" if name else key):
                return told
        return None
    return None if before == now else f"its {name} is {before}, now {now}"


class Record:
    """
    The answers of a sweep: a line per (model, batch, setting), in any order; a line cut off by a kill is dropped.

    `sweep.json` is written with the first answer, so that a command that answers nothing claims no folder.

    Args:
        folder: of the sweep. spec: what decides its answers, as JSON holds it.

    Raises:
        UserError: another sweep's folder (names what differs), a file, or a line that is no answer.
    """

    def __init__(self, folder: Path, spec: dict):
        self.folder, self.spec, self.lines = folder, json.loads(json.dumps(spec, default=str)), {}
        self.held = None  # the lock of the folder
        self.answers, self.saved = folder / "answers.jsonl", folder / "sweep.json"
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--output={folder} is a file: name a folder")
        if self.answers.exists() and not self.saved.exists():
            raise UserError(f"{self.answers} is of no sweep (no sweep.json beside it): name another folder")
        if self.saved.exists():
            try:
                before = read_json(self.saved)
            except ValueError as error:
                raise UserError(f"{self.saved} can't be read ({first_line(error)}); choose another folder") from error
            if told := difference(before, self.spec):
                raise UserError(f"--output={folder} holds another sweep: {told}; choose another folder")
            self._read()

    def _read(self) -> None:
        text = self.answers.read_text(encoding="utf-8") if self.answers.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            self.answers.write_text(whole, encoding="utf-8")
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                entry = json.loads(line)
                self.lines[entry["model"], entry["batch"], entry["setting"]] = entry["answers"]
            except (ValueError, TypeError, KeyError) as error:
                told = f"{self.answers}, line {number}, is no answer of a sweep"
                raise UserError(f"{told} ({first_line(error)}): delete the line, it is asked again") from error

    def add(self, model: int, batch: int, setting: int, answers: list) -> None:
        if self.held is None:
            self.held = lock(self.folder, "--output")
        if not self.saved.exists():
            write_json(self.saved, self.spec)
        self.lines[model, batch, setting] = answers
        entry = {"model": model, "batch": batch, "setting": setting, "answers": answers}
        with self.answers.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def of(self, model: int, setting: int) -> dict:
        """(task, document) -> [text, output tokens, truncated]."""
        return {
            (task, doc): rest
            for (m, _, s), answers in self.lines.items()
            if (m, s) == (model, setting)
            for task, doc, *rest in answers
        }
