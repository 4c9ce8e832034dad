"""Ask a model held-out questions about pictures, or yours, without and with ability fusion.

    vift demo                                        # table, and demo.png
    vift demo --json results.json --n 300 --beta 0.2
    vift demo --image picture.png --question "which digit is at the top left ?"
    vift demo --model my-org/my-vift-model           # any VIFT checkpoint, a folder or a Hub id

The questions are the test split of the model's world (`vift_eval.worlds`): scenes that training never saw, and no
question about a picture was ever trained on. Each is asked under four conditions: *unfused*, *fused*
(h' = alpha h(v,q) + beta h(q), arXiv 2502.11427; the bundled model replaces h(v,q) in one layer: alpha 0,
beta 1), *blind* (without the image) and *oracle_text* (without the image, the scene described in words: what
the language model could do with perfect sight).
"""

import argparse
import contextlib
import sys
import time
from pathlib import Path

from vift_hub.cli import OneLineParser, UserError, add_model, run

from ..files import command_line, made_by, write_json
from ..images import open_image
from ..models import BUNDLED, load_model, model_name, unknown_words
from ..worlds import world_of

# condition -> what the table and the picture call it
LABELS = {"unfused": "without fusion", "fused": "with fusion", "blind": "blind", "oracle_text": "scene in words"}
CHUNK = 60  # questions between two steps of the progress bar
CARDS = 8  # examples in the picture
LONGEST = 48  # tokens of an answer about a picture of one's own


def build_parser() -> argparse.ArgumentParser:
    parser = OneLineParser("vift demo", __doc__)
    add_model(parser, str(BUNDLED))
    parser.add_argument("--image", type=Path, help="ask about this picture instead")
    parser.add_argument("--question", help="the question about --image")
    parser.add_argument("--no-fusion", action="store_true", help="do not ask with fusion")
    parser.add_argument("--alpha", type=float, help="weight of the image run")
    parser.add_argument("--beta", type=float, help="weight of the text run")
    parser.add_argument("--layers", help="fused layers: 4:8 (half-open), or 0.5 (the top half)")
    parser.add_argument("--n", type=int, help="number of questions (default 300; 46 about drawings)")
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


def ask(model, processor, rows: list[dict], condition: str, fusion: dict, **kwargs) -> list[str]:
    from ..answers.conditions import evaluate

    return evaluate(model, processor, rows, condition, **kwargs, **(fusion if condition == "fused" else {}))


def conditions_of(args: argparse.Namespace, *names: str) -> list[str]:
    """Fused first: a bad fusion argument is refused before anything else is asked."""
    return [*([] if args.no_fusion else ["fused"]), *names]


def ask_held_out(model, processor, args: argparse.Namespace, made: dict) -> None:
    from tqdm import tqdm

    start, world = time.monotonic(), world_of(model.config)
    rows, fusion = world.rows(args.n or world.questions, args.seed or 0), fusion_arguments(args)
    conditions = conditions_of(args, "unfused", "blind", "oracle_text")
    replies: dict[str, list[str]] = {condition: [] for condition in conditions}
    with tqdm(total=len(conditions) * len(rows), unit="question", disable=None, leave=False) as bar:
        for condition in conditions:
            bar.set_description(LABELS[condition])
            for first in range(0, len(rows), CHUNK):
                chunk = rows[first : first + CHUNK]
                replies[condition] += ask(
                    model, processor, chunk, condition, fusion, max_new_tokens=world.max_new_tokens
                )
                bar.update(len(chunk))
    results = score(replies, rows, world)
    seconds = time.monotonic() - start
    print(f"{model_name(args.model)}: {len(rows)} held-out questions, right answers in %, "
          f"95 % intervals ({seconds:.0f} s)\n")  # fmt: skip
    print(table(results) + "\n")
    if not args.no_fusion:
        print(f"with fusion: {describe_fusion(model.config, fusion)}")
    print("blind: without the image; scene in words: described instead of shown")
    if args.json is not None:
        write_json(args.json, results)
        print(f"wrote {args.json}")

    first_of = {row["family"]: row for row in reversed(rows)}
    shown = [first_of[family] for family in list(dict.fromkeys(row["family"] for row in rows))[::2]][:CARDS]
    full = {  # whole captions: the score needs only their beginning
        condition: ask(model, processor, shown, condition, fusion, max_new_tokens=world.whole)
        for condition in ("unfused", "fused")
        if condition in replies
    }
    path = args.output or Path("demo.png")
    draw_held_out(path, model_name(args.model), shown, full, results, made, world)
    print(f"wrote {path}; ask about a picture of your own: vift demo --image picture.png --question '...'")


def draw_held_out(
    path: Path, name: str, rows, replies: dict[str, list[str]], results: dict, made: dict, world
) -> None:
    from .picture import Bar, Example, draw_picture

    examples = []
    for k, row in enumerate(rows):
        texts = {LABELS[condition]: answers[k] for condition, answers in replies.items()}
        marked = {label: (text, world.is_right(text, row)) for label, text in texts.items()}
        examples.append(Example(row["images"][0], row["question"], row["answer"], marked))
    scores = {LABELS[condition]: results[condition] for condition in LABELS if results[condition] is not None}
    bars = [Bar(label, s["accuracy"], *s["ci95"], s["caption_rate"]) for label, s in scores.items()]
    draw_picture(
        path,
        examples,
        bars,
        "Same weights, same picture: what ability fusion changes",
        f"{name}, {results['n']} held-out questions, right answers, 95 % intervals. "
        "The cards were not chosen by their answers.",
        f"Cards: the first question of every second family. {world.credit}",
        made,
    )


def score(replies: dict[str, list[str]], rows: list[dict], world) -> dict:
    """The JSON of `--json`: n, then per condition accuracy, ci95 and caption_rate, then by_family.

    A condition that was not asked is null.
    """
    import numpy as np

    from ..answers.outcomes import summarize

    families = np.array([row["family"] for row in rows])
    results: dict = {"n": len(families)} | dict.fromkeys(LABELS)
    marks = {
        condition: [(world.is_right(text, row), world.is_caption(text, row)) for text, row in zip(texts, rows)]
        for condition, texts in replies.items()
    }
    for condition, both in marks.items():
        results[condition] = summarize(both)
    results["by_family"] = {}
    for family in sorted(set(families.tolist())):
        index = np.flatnonzero(families == family)
        results["by_family"][family] = {"n": len(index)} | dict.fromkeys(LABELS)
        for condition, both in marks.items():
            summary = summarize([both[i] for i in index])
            del summary["caption_rate"]
            results["by_family"][family][condition] = summary
    return results


def table(results: dict) -> str:
    conditions = [condition for condition in LABELS if results[condition] is not None]

    def cell(scores):
        low, high = scores["ci95"]
        return f"{100 * scores['accuracy']:3.0f} [{100 * low:3.0f}, {100 * high:3.0f}]"

    def line(name, n, cells):
        return f"{name:16s}{n:>4}" + "".join(f"{text:>15s}" for text in cells)

    rule = "-" * len(line("", "", [""] * len(conditions)))
    families = [
        line(name.replace("_", " "), scores["n"], [cell(scores[condition]) for condition in conditions])
        for name, scores in results["by_family"].items()
    ]
    rates = [f"{100 * results[condition]['caption_rate']:.0f} %" for condition in conditions]
    return "\n".join(
        [
            line("question family", "n", [LABELS[condition] for condition in conditions]),
            rule,
            *families,
            rule,
            line("all", results["n"], [cell(results[condition]) for condition in conditions]),
            line("captions instead", "", rates),
        ]
    )


def describe_fusion(config, fusion: dict) -> str:
    """The settings in force: the config's, where the user set nothing."""
    from modeling_vift import resolve_fusion

    from ..engine import describe, in_words

    return in_words(describe(resolve_fusion(config, True, **fusion)))


def ask_own(model, processor, args: argparse.Namespace, made: dict) -> None:
    image, notes = open_image(args.image)
    question = args.question.strip()
    if processor.image_token in question:
        raise UserError(f"--question holds {processor.image_token!r}, which stands for a picture")
    tokens = len(processor.tokenizer(question)["input_ids"])
    longest = model.config.get_text_config().max_position_embeddings - LONGEST - 64
    if tokens > longest:
        raise UserError(f"--question has {tokens} tokens; this model reads at most {longest}")
    if words := unknown_words(processor.tokenizer, question):
        notes.append(f"the model does not know: {', '.join(words)} (its vocabulary is closed)")
    if args.model == str(BUNDLED) or Path(args.model).name == "vift-smol":
        notes.append(world_of(model.config).unknown)
    for note in notes:
        print(f"vift demo: note: {note}", file=sys.stderr)
    rows, fusion = [{"question": question, "images": [image]}], fusion_arguments(args)
    replies = {
        condition: ask(model, processor, rows, condition, fusion, max_new_tokens=LONGEST)[0]
        for condition in conditions_of(args, "unfused", "blind")
    }
    replies = {label: replies[condition] for condition, label in LABELS.items() if condition in replies}
    print(f"question: {question}")
    for label, reply in replies.items():
        print(f"{label + ':':16s}{reply or '(no answer)'}")
    if not args.no_fusion:
        print(f"with fusion: {describe_fusion(model.config, fusion)}")
    if args.output is not None:
        from .picture import Example, draw_picture

        example = Example(image, question, None, {k: (v, None) for k, v in replies.items()})
        draw_picture(args.output, [example], [], model_name(args.model), args.image.name, "", made)
        print(f"wrote {args.output}")


def demo(args: argparse.Namespace, command: str) -> None:
    check_arguments(args)
    if args.image is not None:
        open_image(args.image)  # before the seconds that loading takes
    if sys.stderr.isatty():
        print(f"loading {model_name(args.model)} …", file=sys.stderr)
    model, processor = load_model(args.model, trust_remote_code=args.trust_remote_code)
    (ask_own if args.image is not None else ask_held_out)(model, processor, args, made_by(command, args.model))


def main(argv: list[str] | None = None) -> int:
    return run("vift demo", demo, build_parser().parse_args(argv), command_line("vift demo", argv), extra="microworld")


if __name__ == "__main__":
    sys.exit(main())
