"""The main job, seen: held-out visual questions without and with ability fusion.

    vift-demo                                        # table, and demo.png
    vift-demo --json results.json --n 300 --beta 0.2
    vift-demo --image picture.png --question "which digit is at the top left ?"
    vift-demo --model my-org/my-vift-model           # any VIFT checkpoint, a folder or a Hub id

The questions are the micro-world's test split: handwriting and scenes that training never saw, and
no question about a picture was ever trained on. Each is asked four ways: *unfused*, *fused*
(h' = alpha h(v,q) + beta h(q), arXiv 2502.11427), *blind* (without the image) and *oracle_text* (without
the image, the scene described in words: what the language model could do with perfect sight).
"""

import argparse
import contextlib
import json
import os
import sys
import time
from pathlib import Path

from ..cli import OneLineParser, UserError, first_line
from ..images import ImageError, open_image
from ..models import BUNDLED, load_model, model_name, unknown_words

CONDITIONS = {
    "unfused": "without fusion",
    "fused": "with fusion",
    "blind": "blind",
    "oracle_text": "scene in words",
}
N_QUESTIONS = 300  # 20 a family
CHUNK = 60  # questions between two steps of the progress bar
CARDS = 8  # examples in the picture
MAX_NEW_TOKENS = 48  # a caption of the largest scene fits


def build_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="vift-demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default=str(BUNDLED), help="folder or Hub id of a VIFT model")
    parser.add_argument("--image", type=Path, help="ask about this picture instead")
    parser.add_argument("--question", help="the question about --image")
    parser.add_argument("--no-fusion", action="store_true", help="do not ask with fusion")
    parser.add_argument("--alpha", type=float, help="weight of the image run")
    parser.add_argument("--beta", type=float, help="weight of the text run")
    parser.add_argument("--layers", help="fused layers: 4:8 (half-open), or 0.5 (the top half)")
    parser.add_argument("--n", type=int, help=f"number of questions (default {N_QUESTIONS})")
    parser.add_argument("--seed", type=int, help="which questions are drawn (default 0)")
    parser.add_argument("--output", type=Path, help="where the picture goes (default demo.png)")
    parser.add_argument("--json", type=Path, help="write the results here, too")
    return parser


def check_arguments(args: argparse.Namespace) -> None:
    if args.image is not None and args.question is None:
        raise UserError("--image needs --question: what is asked about the picture?")
    if args.question is not None and args.image is None:
        raise UserError("--question needs --image: which picture is it about?")
    if args.question is not None and not args.question.strip():
        raise UserError("--question is empty")
    for name in ("json", "n", "seed"):
        if args.image is not None and getattr(args, name) is not None:
            raise UserError(f"--{name} belongs to the held-out questions; drop it or --image")
    if args.n is not None and args.n < 1:
        raise UserError(f"--n={args.n} must be at least 1")
    if args.no_fusion:
        for name in ("alpha", "beta", "layers"):
            if getattr(args, name) is not None:
                raise UserError(f"--{name} says how to fuse and --no-fusion not to; give one")
    for name in ("json", "output"):
        path = getattr(args, name)
        if path is not None and not path.absolute().parent.is_dir():
            raise UserError(f"--{name}={path}: the folder {path.absolute().parent} does not exist")
        if path is not None and path.is_dir():
            raise UserError(f"--{name}={path} is a folder; name a file in it")
    if args.output is not None and args.output.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise UserError(f"--output={args.output} must end in .png, .pdf or .svg")


def fusion_arguments(args: argparse.Namespace) -> dict:
    """What the user set, as keywords of `generate()`; the rest is the config's."""
    layers = args.layers
    if layers is not None and ":" not in layers:
        with contextlib.suppress(ValueError):  # generate() says what it may be
            layers = float(layers)  # a fraction of the top
    given = {"alpha": args.alpha, "beta": args.beta, "fusion_layers": layers}
    return {name: value for name, value in given.items() if value is not None}


def ask(model, processor, rows: list[dict], mode: str, fusion: dict, **kwargs) -> list[str]:
    from ..answers.conditions import evaluate

    try:
        return evaluate(model, processor, rows, mode, **kwargs, **(fusion if mode == "fused" else {}))
    except ValueError as error:  # names the argument, the value and the range
        raise UserError(first_line(error)) from error


def ask_held_out(model, processor, args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from vift_microworld import visual_questions

    start = time.monotonic()
    questions = visual_questions(args.n or N_QUESTIONS, seed=args.seed or 0, split="test")
    rows, fusion = list(questions), fusion_arguments(args)
    # fused first: a bad fusion argument is refused before anything else is asked
    modes = [m for m in ("fused", "unfused", "blind", "oracle_text") if m != "fused" or not args.no_fusion]
    replies: dict[str, list[str]] = {mode: [] for mode in modes}
    with tqdm(total=len(modes) * len(rows), unit="question", disable=None, leave=False) as bar:
        for mode in modes:
            bar.set_description(CONDITIONS[mode])
            for first in range(0, len(rows), CHUNK):
                chunk = rows[first : first + CHUNK]
                replies[mode] += ask(model, processor, chunk, mode, fusion)
                bar.update(len(chunk))
    results = score(replies, questions)
    seconds = time.monotonic() - start
    print(f"{model_name(args.model)}: {len(rows)} held-out questions, exact match in %, "
          f"95 % intervals ({seconds:.0f} s)\n")  # fmt: skip
    print(table(results) + "\n")
    if not args.no_fusion:
        print(f"with fusion: {describe_fusion(model.config, fusion)}")
    print("blind: without the image; scene in words: described instead of shown")
    if args.json is not None:
        args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(f"wrote {args.json}")

    modes = [mode for mode in ("unfused", "fused") if mode in replies]
    families = list(dict.fromkeys(questions["family"]))
    first_of = {row["family"]: row for row in reversed(rows)}
    shown = [first_of[family] for family in families[::2]][:CARDS]
    full = {  # whole captions: the score needs only their beginning
        mode: ask(model, processor, shown, mode, fusion, max_new_tokens=MAX_NEW_TOKENS) for mode in modes
    }
    path = args.output or Path("demo.png")
    draw_held_out(path, model_name(args.model), shown, full, results)
    print(f"wrote {path}")


def draw_held_out(path: Path, name: str, rows, replies: dict[str, list[str]], results: dict) -> None:
    from vift_microworld import exact_match

    from .picture import Bar, Example, draw_picture

    examples = []
    for k, row in enumerate(rows):
        said = {CONDITIONS[mode]: texts[k] for mode, texts in replies.items()}
        marked = {label: (reply, exact_match(reply, row["answer"])) for label, reply in said.items()}
        examples.append(Example(row["images"][0], row["question"], row["answer"], marked))
    bars = [
        Bar(label, r["accuracy"], *r["ci95"], r["caption_rate"])
        for mode, label in CONDITIONS.items()
        if (r := results[mode]) is not None
    ]
    draw_picture(
        path,
        examples,
        bars,
        "Same weights, same picture: what ability fusion changes",
        f"{name}, {results['n']} held-out questions, exact match, 95 % intervals. "
        "The cards were not chosen by their answers.",
        "Cards: the first question of every second family. "
        "Scenes of handwritten digits from scikit-learn's load_digits.",
    )


def score(replies: dict[str, list[str]], questions) -> dict:
    """The JSON of `--json`: n, then per condition accuracy, ci95 and caption_rate, then by_family.

    A condition that was not asked is null.
    """
    import numpy as np

    from ..answers.bootstrap import interval
    from ..answers.outcomes import correct, summarize

    families = np.array(questions["family"])
    names = sorted(set(families.tolist()))
    results: dict = {"n": len(families)} | dict.fromkeys(CONDITIONS)
    by_family: dict = {f: {"n": int((families == f).sum())} | dict.fromkeys(CONDITIONS) for f in names}
    for mode, texts in replies.items():
        summary = summarize(texts, questions)
        results[mode] = {name: summary[name] for name in ("accuracy", "ci95", "caption_rate")}
        hits = correct(texts, questions)
        for family in names:
            mine = hits[families == family]
            by_family[family][mode] = {
                "accuracy": round(float(mine.mean()), 4),
                "ci95": interval(mine),
            }
    return results | {"by_family": by_family}


def table(results: dict) -> str:
    asked = [mode for mode in CONDITIONS if results[mode] is not None]

    def cell(scores):
        low, high = scores["ci95"]
        return f"{100 * scores['accuracy']:3.0f} [{100 * low:3.0f}, {100 * high:3.0f}]"

    def line(name, n, cells):
        return f"{name:16s}{n:>4}" + "".join(f"{text:>15s}" for text in cells)

    rule = "-" * len(line("", "", [""] * len(asked)))
    families = [
        line(name.replace("_", " "), scores["n"], [cell(scores[mode]) for mode in asked])
        for name, scores in results["by_family"].items()
    ]
    rates = [f"{100 * results[mode]['caption_rate']:.0f} %" for mode in asked]
    return "\n".join(
        [
            line("question family", "n", [CONDITIONS[mode] for mode in asked]),
            rule,
            *families,
            rule,
            line("all", results["n"], [cell(results[mode]) for mode in asked]),
            line("captions instead", "", rates),
        ]
    )


def describe_fusion(config, fusion: dict) -> str:
    """The settings in force: the config's, where the user set nothing."""
    settings = {
        "alpha": config.fusion_alpha,
        "dose" if config.fusion_dose is not None else "beta": config.fusion_dose
        if config.fusion_dose is not None
        else config.fusion_beta,
        "layers": config.fusion_layers,
        "rule": config.fusion_rule,
        "span": config.fusion_span,
    }
    if getattr(config, "fusion_answer", False):
        settings["answer"] = "too"
    if "beta" in fusion:
        settings.pop("dose", None)
    settings |= {name.removeprefix("fusion_"): value for name, value in fusion.items()}
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def ask_own(model, processor, args: argparse.Namespace) -> None:
    image, notes = open_image(args.image)
    question = args.question.strip()
    if processor.image_token in question:
        raise UserError(f"--question holds {processor.image_token!r}, which stands for a picture")
    tokens = len(processor.tokenizer(question)["input_ids"])
    longest = model.config.get_text_config().max_position_embeddings - MAX_NEW_TOKENS - 64
    if tokens > longest:
        raise UserError(f"--question has {tokens} tokens; this model reads at most {longest}")
    if words := unknown_words(processor.tokenizer, question):
        notes.append(f"the model does not know: {', '.join(words)} (its vocabulary is closed)")
    if args.model == str(BUNDLED):
        notes.append("the bundled model knows only its own world, a 3 × 3 grid of coloured digits on black")
    for note in notes:
        print(f"vift-demo: note: {note}", file=sys.stderr)
    rows, fusion = [{"question": question, "images": [image]}], fusion_arguments(args)
    modes = [mode for mode in ("unfused", "fused", "blind") if mode != "fused" or not args.no_fusion]
    replies = {
        CONDITIONS[mode]: ask(model, processor, rows, mode, fusion, max_new_tokens=MAX_NEW_TOKENS)[0] for mode in modes
    }
    print(f"question: {question}")
    for label, reply in replies.items():
        print(f"{label + ':':16s}{reply or '(no answer)'}")
    if not args.no_fusion:
        print(f"with fusion: {describe_fusion(model.config, fusion)}")
    if args.output is not None:
        from .picture import Example, draw_picture

        example = Example(image, question, None, {k: (v, None) for k, v in replies.items()})
        draw_picture(args.output, [example], [], model_name(args.model), str(args.image.name), "")
        print(f"wrote {args.output}")


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        check_arguments(args)
        if args.image is not None:
            open_image(args.image)  # before the seconds that loading takes
        if sys.stderr.isatty():
            print(f"loading {model_name(args.model)} …", file=sys.stderr)
        model, processor = load_model(args.model)
        (ask_own if args.image is not None else ask_held_out)(model, processor, args)
    except (UserError, ImageError) as error:
        print(f"vift-demo: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader left, as in `vift-demo | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # writing the results
        print(f"vift-demo: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
