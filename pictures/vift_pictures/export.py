"""The world of pictures as files that `vift-train` reads as they are.

    python -m vift_pictures.export --output data --scenes 20000 --instructions 10000 --questions 1000

writes

    data/train/         web.jsonl, detailed.jsonl ({"image", "captions"}), pictures/, instructions.jsonl
    data/validation/    web.jsonl, detailed.jsonl, pictures/ (a tenth as many scenes), questions.jsonl, questions/
    data/test/, style/, facts/    questions.jsonl, questions/
    data/chat_prompts.jsonl, data/ATTRIBUTION.txt

Pictures are JPEGs, written first and each whole or not at all; the lines that name them come last. The same command
goes on where one was killed; other arguments for a begun folder are refused.
"""

import argparse
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from . import concepts
from .data import captioned_scene, families_of, question, text_instructions
from .prompts import PROMPTS
from .scenes import IMAGE_SIZE, SPLITS, render

JPEG = {"format": "JPEG", "quality": 92, "subsampling": 0}


def _replace(file: Path, write) -> None:
    """`write(path)` to a file beside, then put it in place: a kill leaves no half file."""
    part = file.with_name(f"{file.name}.part")
    write(part)
    os.replace(part, file)


def _write_pictures(indices: range, folder: Path, seed: int, split: str, size: int, asked: bool) -> None:
    for index in indices:
        file = folder / f"{index:06d}.jpg"
        if not file.exists():
            asking = question(index, seed, split, families_of(split)) if asked else None
            scene = (asking or captioned_scene(index, seed, split, "web"))[0]
            _replace(file, lambda path, scene=scene: render(scene, size).save(path, **JPEG))


def _pictures(pool, folder: Path, count: int, seed: int, **settings) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    chunks = [range(start, min(start + 200, count)) for start in range(0, count, 200)]
    for done, _ in enumerate(pool.map(partial(_write_pictures, folder=folder, seed=seed, **settings), chunks), 1):
        print(f"{folder}: {min(done * 200, count)} of {count} pictures", file=sys.stderr, flush=True)


def _lines(file: Path, rows) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    _replace(file, lambda path: path.write_text(text, encoding="utf-8"))


def export(output: Path, scenes: int, instructions: int, questions: int, seed: int = 0, size: int = IMAGE_SIZE,
           processes: int | None = None) -> None:  # fmt: skip
    """Write all files. Raises ValueError for a folder begun with other arguments, or where a package is missing."""
    for style in ("twemoji", "openmoji"):
        concepts.drawing(
            next(iter(concepts.concepts().values())).drawings[0], style
        )  # a missing package ends here, before any file
    settings = {"scenes": scenes, "instructions": instructions, "questions": questions, "seed": seed, "size": size}
    known = output / "export.json"
    if known.exists() and (begun := json.loads(known.read_text(encoding="utf-8"))) != settings:
        name = next(name for name in settings if begun.get(name) != settings[name])
        raise ValueError(f"output={str(output)!r} was begun with {name}={begun.get(name)}, not {settings[name]}: "
                         "give the same arguments or another folder")  # fmt: skip
    if not known.exists() and output.exists() and any(output.iterdir()):
        raise ValueError(f"output={str(output)!r} is not empty and holds no export.json: name a new folder")
    output.mkdir(parents=True, exist_ok=True)
    _replace(known, lambda path: path.write_text(json.dumps(settings), encoding="utf-8"))
    with ProcessPoolExecutor(processes) as pool:
        for split, count in (("train", scenes), ("validation", scenes // 10)):
            _pictures(pool, output / split / "pictures", count, seed, split=split, size=size, asked=False)
            for kind in ("web", "detailed"):
                rows = ((f"pictures/{i:06d}.jpg", captioned_scene(i, seed, split, kind)[1]) for i in range(count))
                _lines(output / split / f"{kind}.jsonl", ({"image": file, "captions": said} for file, said in rows))
        for split in SPLITS[1:]:
            _pictures(pool, output / split / "questions", questions, seed, split=split, size=size, asked=True)
            rows = (question(i, seed, split, families_of(split))[1] for i in range(questions))
            named = ({"image": f"questions/{i:06d}.jpg", **row} for i, row in enumerate(rows))
            _lines(output / split / "questions.jsonl", named)
    _lines(output / "train" / "instructions.jsonl", text_instructions(instructions, seed))
    _lines(output / "chat_prompts.jsonl", ({"prompt": prompt} for prompt in PROMPTS))
    _replace(output / "ATTRIBUTION.txt", lambda path: path.write_text("\n".join(concepts.ATTRIBUTION.values()) + "\n"))


def _count(least: int):
    def read(text: str) -> int:
        if not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least {least}")
        return int(text)

    return read


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m vift_pictures.export", description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--scenes", type=_count(10), default=20000, help="captioned training scenes")
    parser.add_argument("--instructions", type=_count(1), default=10000)
    parser.add_argument("--questions", type=_count(1), default=1000, help="of each split but train")
    parser.add_argument("--seed", type=_count(0), default=0)
    parser.add_argument("--size", type=_count(32), default=IMAGE_SIZE, help="pixels of a picture's side")
    parser.add_argument("--processes", type=_count(1), default=None)
    args = parser.parse_args(argv)
    try:
        export(**vars(args))
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    print(f"wrote {args.scenes} captioned scenes and {args.instructions} instructions to {args.output}")


if __name__ == "__main__":
    main()
