"""Which layers to train: visual instruction tuning restricted to bands of layers, on the micro-world, three seeds.

    python -m vift_studies.bands.study      # work folder runs/paper: stage 1 of `make paper` is reused, or trained

From each seed's stage-1 checkpoint, one pass over visual questions (ten of fifteen families, a quarter of the
recipe's rows), with the recipe of `make paper`'s visual-instruction baseline, all else equal; only `train_layers`
differs (`arms`). The band is that of the rule (`vift_layers.band`), run on the stage-1 model and scenes of the
training split. Every arm is then asked 600 questions of the test split, with the picture and with the scene in words.
Steps are those of `paper.Runner`: a run that was stopped or killed goes on where it was. Writes docs/results/bands/:
bands.json, bands.png, README.md.
"""

import argparse
import json
import random
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
import yaml

from vift_eval.answers.conditions import load
from vift_eval.layers.pairs import micro_pairs
from vift_layers.band import choose_band
from vift_microworld import FAMILIES, visual_instructions, visual_questions

from ..paper import plan as paper
from ..paper.plan import Step, console, one_thread, write_json

ARMS = {
    "full": "the whole language model",
    "connector": "the connector only",
    "rule": "the band that the rule chose",
    "complement": "all layers outside the rule's band",
    "random": "as many layers as the rule's band has, drawn at random",
    "late": "the upper half",
    "first": "a third of the layers: the lowest",
    "middle": "a third: from a quarter of the depth up, where arXiv 2606.03871 found its bands",
    "top": "a third: the highest",
    "spaced": "a third: evenly spaced",
}
DIVISOR = 4  # of the recipe's rows: the size for which the learning rate was chosen (docs/log.md)
PAIRS = 1000  # for the rule
COUNT = 600
STEPS = 7  # timed steps an arm
SECONDS = {"data": 15, "band": 25, "train": 35, "answers": 110, "cost": 60}


def arms(band: range, num_layers: int, seed: int) -> dict[str, list[int] | None]:
    """Arm -> layers that are trained; None: the whole language model."""
    size, every = max(1, round(num_layers / 3)), list(range(num_layers))
    start = min(round(num_layers / 4), num_layers - size)
    return {
        "full": None,
        "connector": [],
        "rule": list(band),
        "complement": [layer for layer in every if layer not in band],
        "random": sorted(random.Random(f"band study {seed}").sample(every, len(band))),
        "late": every[num_layers // 2 :],
        "first": every[:size],
        "middle": every[start : start + size],
        "top": every[-size:],
        "spaced": sorted({round(x) for x in np.linspace(0, num_layers - 1, size)}),
    }


def plan(seeds=(0, 1, 2)) -> list[Step]:
    """Steps in order; those of `make paper` that lead to stage 1 come first."""
    own = (sys.executable, "-m", "vift_studies.bands.study")
    wanted = {f"seed{seed}/{name}" for seed in seeds for name in ("start", "stage1")}
    steps, answers = [step for step in paper.plan(seeds) if step.name in wanted], []
    for seed in seeds:
        at = f"seed{seed}/bands"

        def step(name: str, command, needs, seed=seed, at=at) -> Step:
            kind = command if isinstance(command, str) else command[0]
            words = (kind,) if isinstance(command, str) else tuple(command)
            suffix = "" if kind in ("data", "train") else ".json"
            return Step(f"{at}/{name}", f"{at}/{name}{suffix}", (*own, *words, "--seed", str(seed), "--out", "{out}"),
                        needs, SECONDS[kind])  # fmt: skip

        steps += [step("data", "data", ()), step("band", "band", (f"seed{seed}/stage1",))]
        trained = [step(arm, ("train", "--arm", arm), (f"{at}/data", f"{at}/band")) for arm in ARMS]
        steps += trained
        answers.append(step("answers", "answers", tuple(one.name for one in trained)))
        if seed == seeds[0]:
            answers.append(step("cost", "cost", (f"{at}/data", f"{at}/band")))
    return steps + answers


def bands_of(seed: int) -> dict[str, list[int] | None]:
    rule = json.loads(Path(f"seed{seed}/bands/band.json").read_text(encoding="utf-8"))
    return arms(range(rule["first"], rule["stop"]), len(rule["profile"]) - 1, seed)


def make_data(seed: int, out: Path) -> None:
    from ..paper.measure import held_out

    seen = tuple(family for family in FAMILIES if family not in held_out(seed))
    rows = yaml.safe_load((paper.RECIPES / "stage2.yaml").read_text(encoding="utf-8"))["caption_rows"] // DIVISOR
    out.mkdir(parents=True)
    data = visual_instructions(rows, seed=seed, families=seen)
    data.select_columns(["messages", "images", "modality"]).to_parquet(out / "visual.parquet")
    (out / "vit-baseline.yaml").write_text(yaml.safe_dump(paper.training_settings("vit-baseline")), encoding="utf-8")


def make_band(seed: int, out: Path) -> None:
    model, processor = load(f"seed{seed}/stage1")
    band = choose_band(model, processor, micro_pairs(PAIRS, "train", seed=seed), batch_size=50)
    write_json(out, band.to_dict())


def train(seed: int, arm: str, out: Path) -> None:
    data, layers = f"seed{seed}/bands/data", bands_of(seed)[arm]
    what = [] if layers is None else ["--train_layers", ",".join(map(str, layers))]
    if layers == []:
        what = ["--train_language_model", "false"]
    subprocess.run(
        [
            console("vift-train"), "--config", f"{data}/vit-baseline.yaml", "--model", f"seed{seed}/stage1",
            "--captions", f"{data}/visual.parquet", "--seed", str(seed), *what, "--attn_implementation", "eager",
            "--output_dir", str(out),
        ],
        check=True, env=one_thread(),
    )  # fmt: skip


def answer(seed: int, out: Path) -> None:
    from vift_eval.answers.baselines import ask

    from ..paper.measure import SHORT, held_out, outcomes, show

    questions = visual_questions(COUNT, split="test")
    found = {"held_out": held_out(seed), "families": list(questions["family"]), "layers": bands_of(seed), "arms": {}}
    for arm, folder in {"before": f"seed{seed}/stage1", **{arm: f"seed{seed}/bands/{arm}" for arm in ARMS}}.items():
        model, processor = load(folder)
        found["arms"][arm] = {}
        for way in ("unfused", "gold"):
            found["arms"][arm][way] = outcomes(ask(model, processor, questions, way, max_new_tokens=SHORT), questions)
            show(f"{arm} {way}", found["arms"][arm][way])
    write_json(out, found)


def choose_parameters(model, layers: list[int] | None) -> list:
    """Parameters that an arm trains, as `vift-train` does; the others are frozen."""
    trained = []
    for name, parameter in model.named_parameters():
        layer = re.search(r"language_model\.layers\.(\d+)\.", name)
        in_band = "language_model" in name if layers is None else layer is not None and int(layer[1]) in layers
        parameter.requires_grad = in_band or "multi_modal_projector" in name
        if parameter.requires_grad:
            trained.append(parameter)
    return trained


def measure_cost(seed: int, out: Path) -> None:
    """CPU time of a step (forward, backward, AdamW; 64 rows), the arms in turn; bytes of gradients and moments.

    `connector_frozen`: the band with the connector frozen too, so that nothing below it is differentiated.
    """
    model, processor = load(f"seed{seed}/stage1")
    model.set_attn_implementation("eager")
    model.train()
    rows = visual_instructions(64, seed=seed)
    prompts = [processor.apply_chat_template(messages) for messages in rows["messages"]]
    inputs = processor(text=prompts, images=[row[0] for row in rows["images"]], padding=True, return_tensors="pt")
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    layers = bands_of(seed)
    seconds, size = {arm: [] for arm in (*layers, "connector_frozen")}, {}
    for step in range(STEPS + 1):  # the first round warms up
        for arm in seconds:
            trained = choose_parameters(model, layers["rule" if arm == "connector_frozen" else arm])
            if arm == "connector_frozen":
                for name, parameter in model.named_parameters():
                    parameter.requires_grad &= "multi_modal_projector" not in name
                trained = [p for p in trained if p.requires_grad]
            optimizer = torch.optim.AdamW(trained, lr=0.0)
            start = time.process_time()
            model(**inputs, labels=labels).loss.backward()
            optimizer.step()
            taken = time.process_time() - start
            optimizer.zero_grad(set_to_none=True)
            if step:
                seconds[arm].append(taken)
            size[arm] = 3 * sum(p.numel() * p.element_size() for p in trained)
    median = {arm: statistics.median(values) for arm, values in seconds.items()}
    found = {
        arm: {"step": round(median[arm] / median["full"], 3), "seconds": round(median[arm], 4), "bytes": size[arm]}
        for arm in seconds
    }
    write_json(out, found)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("step", nargs="?", choices=("data", "band", "train", "answers", "cost"), help="one step alone")
    parser.add_argument("--seed", type=int, help="of one step")
    parser.add_argument("--arm", choices=list(ARMS))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--work", type=Path, default=Path("runs/paper"), help="where steps keep their results")
    parser.add_argument("--output", type=Path, default=Path("docs/results/bands"), help="where page and figures go")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="steps at a time, one thread each")
    parser.add_argument("--page", action="store_true", help="only write the page, from the steps that are done")
    args = parser.parse_args(argv)
    if args.step:
        torch.set_num_threads(1)
        if args.step == "train":
            train(args.seed, args.arm, args.out)
        else:
            {"data": make_data, "band": make_band, "answers": answer, "cost": measure_cost}[args.step](
                args.seed, args.out
            )
        return 0
    try:
        if not args.page:
            paper.check_recipe(args.work)
            paper.Runner(plan(args.seeds), args.work, args.jobs).run()
        from .page import write_page

        write_page(args.work, args.output, args.seeds)
        print(f"wrote {args.output}")
    except ValueError as error:
        print(f"vift_studies.bands.study: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
