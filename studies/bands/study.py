"""Which layers to train: visual instruction tuning restricted to bands of layers, on the micro-world, three seeds.

    python -m vift_studies.bands.study answers --seed 0 --out answers.parquet     # one step, in the work folder

From each seed's stage-1 checkpoint, one pass over visual questions (ten of fifteen families, a quarter of the
recipe's rows), with the recipe of `make paper`'s visual-instruction baseline, all else equal; only `train_layers`
differs (`arms`). The band is that of the rule (`vift_layers.band`), run on the stage-1 model and scenes of the
training split. Every arm is then asked 600 questions of the test split, with the picture and with the scene in words.
"""

import argparse
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from vift_eval.files import read_json, write_json
from vift_eval.layers.pairs import micro_pairs
from vift_eval.models import load_model
from vift_layers.band import choose_band
from vift_microworld import visual_instructions, visual_questions
from vift_train.config import VIFTTrainingConfig, parse_band
from vift_train.micro import load_recipe
from vift_train.trainer import is_trained

from ..answers import ask_rows, seen
from ..paper.measure import write_rows, write_settings
from ..paper.plan import to_stage1
from ..runner import Step, console, one_thread

ARMS = {
    "full": "the whole language model",
    "connector": "the connector only",
    "rule": "the rule's band",
    "complement": "all layers outside the rule's band",
    "random": "as many layers as the rule's, at random",
    "late": "the upper half",
    "first": "the lowest third",
    "middle": "a third, from a quarter of the depth up",
    "top": "the highest third",
    "spaced": "a third, evenly spaced",
    "quarter": "a quarter, evenly spaced",
}
DIVISOR = 4  # of the recipe's rows: the size for which the learning rate was chosen (docs/log.md)
PAIRS = 1000  # of picture and caption, for the rule
COUNT = 600
TIMED = 7  # steps an arm
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
        "spaced": spaced(num_layers, size),
        "quarter": spaced(num_layers, max(1, round(num_layers / 4))),
    }


def spaced(num_layers: int, size: int) -> list[int]:
    """`size` layers from the first to the last, as evenly as can be (a quarter of them: arXiv 2412.12785)."""
    return sorted({round(x) for x in np.linspace(0, num_layers - 1, size)})


def bands_of(seed: int, work: Path = Path(".")) -> dict[str, list[int] | None]:
    """`arms` of a seed whose band the rule has chosen."""
    rule = read_json(work / f"seed{seed}" / "bands" / "band.json")
    return arms(range(rule["first"], rule["stop"]), len(rule["profile"]) - 1, seed)


def plan(seeds=(0, 1, 2)) -> list[Step]:
    """Steps in order; those of `make paper` that lead to stage 1 come first."""
    steps, last = [step for seed in seeds for step in to_stage1(seed)], []
    for seed in seeds:
        at = f"seed{seed}/bands"

        def step(kind: str, needs, suffix="", arm: str | None = None, seed=seed, at=at) -> Step:
            name = f"{at}/{arm or kind}"
            command = (sys.executable, "-m", "vift_studies.bands.study", kind, *(("--arm", arm) if arm else ()),
                       "--seed", str(seed), "--out", "{out}")  # fmt: skip
            return Step(name, name + suffix, command, tuple(needs), SECONDS[kind])

        data, band = step("data", ()), step("band", [f"seed{seed}/stage1"], ".json")
        trained = [step("train", [data.name, band.name], arm=arm) for arm in ARMS]
        steps += [data, band, *trained]
        last.append(step("answers", [one.name for one in trained], ".parquet"))
        if seed == seeds[0]:
            last.append(step("cost", [data.name, band.name], ".json"))
    return steps + last


def make_data(seed: int, out: Path) -> None:
    out.mkdir(parents=True)
    count = load_recipe()["stage2"]["caption_rows"] // DIVISOR
    write_rows(visual_instructions(count, seed=seed, families=seen(seed)), out / "visual.parquet")
    write_settings("vit-baseline", out)


def make_band(seed: int, out: Path) -> None:
    model, processor = load_model(f"seed{seed}/stage1")
    band = choose_band(model, processor, micro_pairs(PAIRS, "train", seed=seed), batch_size=50)
    write_json(out, band.to_dict())


def options(layers: list[int] | None) -> dict:
    """What is trained, as options of `vift-train`."""
    if layers is None:
        return {}
    return {"train_layers": ",".join(map(str, layers))} if layers else {"train_language_model": False}


def train(seed: int, out: Path, arm: str) -> None:
    data = f"seed{seed}/bands/data"
    what = [word for name, value in options(bands_of(seed)[arm]).items() for word in (f"--{name}", str(value))]
    command = [
        console("vift-train"), "--config", f"{data}/vit-baseline.yaml", "--model", f"seed{seed}/stage1",
        "--captions", f"{data}/visual.parquet", "--seed", str(seed), *what, "--attn_implementation", "eager",
        "--output_dir", str(out),
    ]  # fmt: skip
    subprocess.run(command, check=True, env=one_thread())


def answer(seed: int, out: Path) -> None:
    questions, parts = visual_questions(COUNT, split="test"), []
    for arm in ("before", *ARMS):
        model, processor = load_model(f"seed{seed}/stage1" if arm == "before" else f"seed{seed}/bands/{arm}")
        for condition in ("unfused", "oracle_text"):
            parts.append(ask_rows(model, processor, questions, condition, {"seed": seed, "arm": arm}))
    pd.concat(parts, ignore_index=True).to_parquet(out, index=False)


def measure_cost(seed: int, out: Path) -> None:
    """CPU time of a step (forward, backward, AdamW; 64 rows), the arms in turn; bytes of gradients and moments.

    `connector_frozen`: the band with the connector frozen too, so that nothing below it is differentiated.
    """
    model, processor = load_model(f"seed{seed}/stage1")
    model.set_attn_implementation("eager")
    model.train()
    rows = visual_instructions(64, seed=seed)
    prompts = [processor.apply_chat_template(messages) for messages in rows["messages"]]
    inputs = processor(text=prompts, images=[row[0] for row in rows["images"]], padding=True, return_tensors="pt")
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    settings = {arm: options(layers) for arm, layers in bands_of(seed).items()}
    settings["connector_frozen"] = settings["rule"] | {"train_connector": False}
    num_layers = model.config.get_text_config().num_hidden_layers
    trained, seconds, size = {}, {arm: [] for arm in settings}, {}
    with tempfile.TemporaryDirectory() as scratch:
        for arm, given in settings.items():
            args = VIFTTrainingConfig(output_dir=scratch, use_cpu=True, bf16=False, **given)
            band = parse_band(args.train_layers, num_layers) if args.train_layers else None
            trained[arm] = {name for name, _ in model.named_parameters() if is_trained(name, args, band)}
    for step in range(TIMED + 1):  # the first round warms up
        for arm in settings:
            for name, parameter in model.named_parameters():
                parameter.requires_grad = name in trained[arm]
            parameters = [p for p in model.parameters() if p.requires_grad]
            optimizer = torch.optim.AdamW(parameters, lr=0.0)
            start = time.process_time()
            model(**inputs, labels=labels).loss.backward()
            optimizer.step()
            taken = time.process_time() - start
            optimizer.zero_grad(set_to_none=True)
            if step:
                seconds[arm].append(taken)
            size[arm] = 3 * sum(p.numel() * p.element_size() for p in parameters)
    median = {arm: statistics.median(values) for arm, values in seconds.items()}
    write_json(out, [
        {"arm": arm, "step": round(median[arm] / median["full"], 3), "seconds": round(median[arm], 4),
         "bytes": size[arm]}
        for arm in settings
    ])  # fmt: skip


STEPS = {"data": make_data, "band": make_band, "train": train, "answers": answer, "cost": measure_cost}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--arm", choices=list(ARMS), help="of train")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    more = {"arm": args.arm} if args.step == "train" else {}
    STEPS[args.step](args.seed, args.out, **more)


if __name__ == "__main__":
    main()
