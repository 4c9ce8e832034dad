"""What a run shows while it trains: pace and time left by modality, and its own answers at every evaluation.

`VIFTTrainer` brings `ModalityProgress` itself.

    trainer.add_callback(AnswersCallback(processor, rows))

writes `<output_dir>/answers/step-000500.md` and `.png`. Rows are like the trainer's (`messages` with the user's turn,
`images`), the same every time, so that pictures of two steps can be laid side by side.
"""

import math
import textwrap
import time
from dataclasses import astuple, dataclass
from itertools import takewhile
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers import ProgressCallback, TrainerCallback

from vift_hub.pictures import open_stored

from .data import text_of

ANSWERS = "answers"  # folder inside output_dir


@dataclass
class Throughput:
    """What one rank has trained on: tokens, places in the padded batches, seconds, optimizer steps."""

    tokens: int = 0
    places: int = 0
    seconds: float = 0.0
    steps: int = 0

    def add(self, tokens: int, places: int, seconds: float, step_ends: bool) -> None:
        self.tokens, self.places = self.tokens + tokens, self.places + places
        self.seconds, self.steps = self.seconds + seconds, self.steps + step_ends

    def minus(self, other: "Throughput") -> "Throughput":
        return Throughput(*(a - b for a, b in zip(astuple(self), astuple(other))))


def seconds_left(
    throughput: dict[str, Throughput], steps: dict[str, int] | None, steps_left: int, elapsed: float
) -> float:
    """
    Steps of different modalities take different times, so each counts with its own.

    Args:
        throughput: by modality, of this run.
        steps: optimizer steps of an epoch by modality; None (a stream): those to come are like those behind.
        steps_left: optimizer steps to come, of all modalities.
        elapsed: seconds since the run began; what they hold beside the steps (loading, the optimizer) is shared out.
    """
    steps = steps or {modality: one.steps for modality, one in throughput.items()}
    paces = {modality: one.seconds / one.steps for modality, one in throughput.items() if one.steps}
    if not paces:
        return float("nan")
    slowest = max(paces.values())  # for a modality that has not come yet
    pace = sum(count * paces.get(modality, slowest) for modality, count in steps.items()) / sum(steps.values())
    return steps_left * pace * elapsed / sum(one.seconds for one in throughput.values())


class AtTheStart(TrainerCallback):
    """Refuses a checkpoint beyond the run's end, and keeps frozen layers out: gradient checkpointing makes the
    embeddings' output require gradients, for adapters; with a band that would send backward through the frozen layers
    below it (0.83-0.91 of full training's time instead of 0.63)."""

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        done, last = state.global_step, state.max_steps
        if done > last:
            raise ValueError(
                f"the checkpoint is of step {done}, the run has {last}: raise max_steps or num_train_epochs"
            )
        if not hasattr(model, "peft_config") and hasattr(model, "disable_input_require_grads"):
            model.disable_input_require_grads()


class ModalityProgress(ProgressCallback):
    """The progress bar, with tokens per second and padding of each modality, and a time left that knows them."""

    def __init__(self, throughput: dict[str, Throughput], steps: dict[str, int] | None):
        super().__init__()
        self.throughput, self.steps = throughput, steps

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            bar = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
            self.training_bar = tqdm(total=state.max_steps, dynamic_ncols=True, bar_format=bar)
        self.current_step, self.start = 0, time.monotonic()

    def on_step_end(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            elapsed = time.monotonic() - self.start
            left = seconds_left(self.throughput, self.steps, state.max_steps - state.global_step, elapsed)
            parts = [f"{tqdm.format_interval(left)} left"] if math.isfinite(left) else []
            parts += [
                f"{modality} {one.tokens / one.seconds:,.0f} tokens/s, {1 - one.tokens / one.places:.1%} padding"
                for modality, one in sorted(self.throughput.items())
            ]
            self.training_bar.set_postfix_str("; ".join(parts), refresh=False)
        super().on_step_end(args, state, control, **kwargs)


class AnswersCallback(TrainerCallback):
    """
    Args:
        processor: the model's.
        rows: a few rows with images; only the turns before the first assistant turn are asked.
        max_new_tokens: of an answer.
        generate: further keywords of `generate()`, such as `beta`, for the fused answers.
    """

    def __init__(self, processor, rows: list[dict], max_new_tokens: int = 48, **generate):
        self.processor, self.max_new_tokens, self.generate = processor, max_new_tokens, generate
        rows_with = [row for row in rows if row["images"]]
        self.rows = [row | {"images": [open_stored(image) for image in row["images"]]} for row in rows_with]
        self.last_step = None
        if not self.rows:
            raise ValueError(f"rows holds {len(rows)} rows, none with an image: nothing to fuse")

    @torch.no_grad()
    def answers(self, model) -> list[dict]:
        """[{"question", "unfused", "fused", "image"}], one entry per row."""
        was_training = model.training
        model.eval()
        entries = []
        for row in self.rows:
            turns = list(takewhile(lambda message: message["role"] != "assistant", row["messages"]))
            prompt = self.processor.apply_chat_template(turns, add_generation_prompt=True)
            inputs = self.processor(text=prompt, images=row["images"], return_tensors="pt").to(model.device)
            entry = {"question": text_of(turns[-1]), "image": row["images"][0]}
            for name, kwargs in (("unfused", {"fusion": False}), ("fused", {"fusion": True, **self.generate})):
                new = model.generate(**inputs, max_new_tokens=self.max_new_tokens, do_sample=False, **kwargs)
                entry[name] = self.processor.decode(new[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            entries.append(entry)
        model.train(was_training)
        return entries

    def on_evaluate(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.last_step:  # several evaluation sets: once is enough
            return
        self.last_step = state.global_step
        answers = self.answers(model)  # on every rank: a sharded model needs all of them
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir) / ANSWERS
        folder.mkdir(parents=True, exist_ok=True)
        name = f"step-{state.global_step:06d}"
        lines = ["| question | without fusion | with fusion |", "|---|---|---|"]
        for entry in answers:
            cells = (entry[key].replace("|", "/").replace("\n", " ") for key in ("question", "unfused", "fused"))
            lines.append(f"| {' | '.join(cells)} |")
        (folder / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
        draw(answers, folder / f"{name}.png", f"step {state.global_step}")


def draw(answers: list[dict], path: Path, title: str) -> None:
    """One row per entry: the picture, then question and answers."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.7 * len(answers) + 0.5), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left")
    for axes_row, entry in zip(figure.subplots(len(answers), 2, width_ratios=[1, 4], squeeze=False), answers):
        for axes in axes_row:
            axes.axis("off")
        axes_row[0].imshow(entry["image"], interpolation="nearest")
        text = [entry["question"] or "(no question)", f"without: {entry['unfused']}", f"with: {entry['fused']}"]
        lines = "\n".join(textwrap.fill(line, 70, max_lines=3) for line in text)
        axes_row[1].text(0, 1, lines, va="top", fontsize=9, parse_math=False)
    figure.savefig(path, dpi=110)
