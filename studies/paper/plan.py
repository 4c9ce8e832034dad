"""The steps of the paper in a box: which models are trained and what is measured, over independent seeds.

All arms start from the recipe's stage 1, but `one_stage`, which starts before it and gets stage 1's captions too.
"""

import sys
from dataclasses import dataclass

from vift_eval.answers.conditions import CONDITIONS

from ..runner import Step, console


@dataclass(frozen=True)
class Arm:
    """A stage-2 run besides the recipe's own: what it is called, its data, and 1 / divisor of the rows."""

    training: str
    divisor: int
    data: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.training}-{self.divisor}"

    @property
    def files(self) -> dict[str, str]:
        """Data -> file name; stage 1's captions are never divided."""
        return {name: f"{name}-{1 if name == 'web' else self.divisor}.parquet" for name in self.data}


ARMS = (
    *(Arm("vift", divisor, ("detailed", "text")) for divisor in (64, 16, 4)),
    *(Arm("vit", divisor, ("visual",)) for divisor in (64, 16, 4, 1)),
    Arm("vit_text", 4, ("visual", "text")),
    Arm("one_stage", 4, ("web", "detailed", "text")),
    Arm("mixed", 4, ("detailed", "text")),
    Arm("vift_a", 4, ("detailed", "added", "text")),
)
# the checkpoint's fusion but for one setting
FUSED_OTHERWISE = ("prompt_only", "alpha_one", "span_after_image", "span_reference", "rule_independent", "norm_kept")
# asked once for every model; `band` and `replaced` are asked at many settings
ASKED = tuple(name for name in CONDITIONS if name not in ("band", "replaced", *FUSED_OTHERWISE))
# CPU seconds of a step on the machine that the README names: for the time left only
SECONDS = {
    "start": 1100, "stage1": 80, "vift": 250, "data": 10, "validation": 140, "choose": 8, "test": 120,
    "calibrate": 25, "cost": 25, "arms": 100,
}  # fmt: skip


def top_half(num_layers: int) -> str:
    return f"{num_layers // 2}:{num_layers}"


def lowest_quarter(num_layers: int) -> str:
    return f"0:{max(1, num_layers // 4)}"


def arm_command(seed: int, arm: Arm) -> tuple[str, ...]:
    """The `vift-train` command of one arm; paths are relative to the work folder."""
    data = f"seed{seed}/data"
    files = {name: f"{data}/{file}" for name, file in arm.files.items()}
    pictures = [file for name, file in files.items() if name != "text"]
    start = f"seed{seed}/{'start' if arm.training == 'one_stage' else 'stage1'}"
    recipe = "vit-baseline" if arm.training in ("vit", "vit_text") else "stage2"
    return (
        console("vift-train"), "--config", f"{data}/{recipe}.yaml", "--model", start, "--seed", str(seed),
        "--captions", *pictures, *(("--instructions", files["text"]) if "text" in files else ()),
        *(("--modality_order", "mixed") if arm.training == "mixed" else ()),
        "--attn_implementation", "eager", "--output_dir", "{out}",
    )  # fmt: skip


def to_stage1(seed: int) -> list[Step]:
    """The steps from nothing to the model after stage 1, which other studies start from too."""
    at = f"seed{seed}"
    micro = (console("vift-micro"), "--seed", str(seed), "--phase0", f"{at}/phase0")
    start = Step(f"{at}/start", f"{at}/start", (*micro, "--start", "{out}"), seconds=SECONDS["start"])
    command = (*micro, "--stage1", "{out}")
    return [start, Step(f"{at}/stage1", f"{at}/stage1", command, (start.name,), SECONDS["stage1"])]


def plan(seeds=(0, 1, 2)) -> list[Step]:
    """All steps, in the order in which they are started."""
    measure = (sys.executable, "-m", "vift_studies.paper.measure")

    def measured(kind: str, needs=(), seed: int | None = None, suffix=".parquet") -> Step:
        name = kind if seed is None else f"seed{seed}/{kind}"
        which = map(str, seeds if seed is None else [seed])
        command = (*measure, kind, "--seeds", *which, "--out", "{out}")
        return Step(name, name + suffix, command, tuple(needs), SECONDS[kind])

    steps = []
    for seed in seeds:
        at = f"seed{seed}"
        command = (console("vift-micro"), "--seed", str(seed), "--phase0", f"{at}/phase0", "--stage1", f"{at}/stage1",
                   "--output", "{out}")  # fmt: skip
        steps += to_stage1(seed)
        steps.append(Step(f"{at}/vift", f"{at}/vift", command, (f"{at}/stage1",), SECONDS["vift"]))
    for seed in seeds:
        steps.append(measured("data", seed=seed, suffix=""))
        steps.append(measured("validation", [f"seed{seed}/vift"], seed))
    steps.append(measured("choose", [f"seed{seed}/validation" for seed in seeds], suffix=".json"))
    for kind in ("test", "calibrate", "cost"):
        steps += [measured(kind, [f"seed{seed}/vift", "choose"], seed) for seed in seeds]
    for arm in ARMS:
        for seed in seeds:
            at = f"seed{seed}"
            needs = (f"{at}/stage1", f"{at}/data")
            seconds = 12 + (95 if "visual" in arm.data else 250) / arm.divisor + 80 * ("web" in arm.data)
            steps.append(Step(f"{at}/arm-{arm.name}", f"{at}/{arm.name}", arm_command(seed, arm), needs, seconds))
    steps += [measured("arms", [*(f"seed{seed}/arm-{arm.name}" for arm in ARMS), "choose"], seed) for seed in seeds]
    return steps
