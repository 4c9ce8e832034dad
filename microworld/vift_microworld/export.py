"""The micro-world as files on disk, in the forms in which people have their own data.

    python -m vift_microworld.export data/ --captions 4000 --instructions 2000

writes `data/web/` and `data/detailed/` (folders of pictures with `metadata.jsonl`: short captions for stage 1,
detailed ones for stage 2) and `data/instructions.jsonl` (text-only instructions).
"""

import argparse
import json
from pathlib import Path

from .data import detailed_captions, text_instructions, web_captions


def _turn(messages: list[dict], role: str) -> str:
    return next(m["content"][-1]["text"] for m in messages if m["role"] == role)


def write_captions(rows, folder: Path) -> None:
    folder.mkdir(parents=True)
    with (folder / "metadata.jsonl").open("w", encoding="utf-8") as lines:
        for number, row in enumerate(rows):
            row["images"][0].save(folder / f"{number:06d}.png")
            entry = {"file_name": f"{number:06d}.png", "text": _turn(row["messages"], "assistant")}
            lines.write(json.dumps(entry) + "\n")


def write_instructions(rows, file: Path) -> None:
    with file.open("w", encoding="utf-8") as lines:
        for row in rows:
            entry = {
                "instruction": _turn(row["messages"], "user"),
                "output": _turn(row["messages"], "assistant"),
            }
            lines.write(json.dumps(entry) + "\n")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="a new folder")
    parser.add_argument("--captions", type=int, default=4000, help="captioned pictures of each kind (default 4000)")
    parser.add_argument("--instructions", type=int, default=2000, help="text-only instructions (default 2000)")
    parser.add_argument("--seed", type=int, default=0, help="of scenes and words (default 0)")
    args = parser.parse_args(argv)
    if args.folder.exists() and any(args.folder.iterdir()):
        parser.exit(2, f"error: {args.folder} exists and is not empty\n")
    write_captions(web_captions(args.captions, args.seed), args.folder / "web")
    write_captions(detailed_captions(args.captions, args.seed), args.folder / "detailed")
    write_instructions(text_instructions(args.instructions, args.seed), args.folder / "instructions.jsonl")
    print(f"wrote 2 x {args.captions} captioned pictures and {args.instructions} instructions to {args.folder}")


if __name__ == "__main__":
    main()
