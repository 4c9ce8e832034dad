"""Two stages against one: CPU time of the same rows of the micro-world, side by side in one run.

    OMP_NUM_THREADS=1 python studies/benchmarks/stages.py [--model checkpoints/vift-micro] [--steps 12] [--json FILE]

Two stages train the connector alone on the web captions, then language model and connector on detailed captions and
text; one stage trains language model and connector on all of them. So what two stages save is the difference on the
web captions, which depends on how many of the rows these are: given for the micro recipe's counts and for the paper's
(1 M, 1.7 M, 0.2 M; arXiv 2502.11427 reports 30 % less time). A step is the trainer's collator, forward, backward and
AdamW; the kinds of step are taken in turn, medians, seconds of the process's CPU time.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
import yaml
from transformers import AutoProcessor

from modeling_vift import VIFTForConditionalGeneration
from vift_eval.files import command_line, made_by, write_json
from vift_microworld import detailed_captions, text_instructions, web_captions
from vift_train.collator import CheckedCollator
from vift_train.trainer import module_of

RECIPES = Path(__file__).resolve().parents[2] / "train" / "recipes" / "micro"
PAPER = {"web": 1_000_000, "detailed": 1_700_000, "text": 200_000}
TRAINED = {"connector": ("connector",), "all": ("connector", "language_model")}


def micro_rows() -> dict:
    """How many rows of each kind the micro recipe has."""
    stage1, stage2 = (yaml.safe_load((RECIPES / f"stage{n}.yaml").read_text(encoding="utf-8")) for n in (1, 2))
    return {"web": stage1["rows"], "detailed": stage2["caption_rows"], "text": stage2["text_rows"]}


def measure(model_name: str, steps: int, batch: int, checkpointing: bool) -> dict:
    """Seconds of a step: {"web, connector": ..., "web, all": ..., "detailed, all": ..., "text, all": ...}."""
    model = VIFTForConditionalGeneration.from_pretrained(model_name, dtype=torch.float32).train()
    processor = AutoProcessor.from_pretrained(model_name, trust_remote_code=True)
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
        model.disable_input_require_grads()
    collate = CheckedCollator(processor, max_length=None, assistant_only_loss=True)
    rows = {"web": web_captions(batch), "detailed": detailed_captions(batch), "text": text_instructions(batch)}
    kinds = [("web", "connector"), ("web", "all"), ("detailed", "all"), ("text", "all")]
    seconds = {kind: [] for kind in kinds}
    optimizers = {
        trained: torch.optim.AdamW([p for n, p in model.named_parameters() if module_of(n) in modules], lr=1e-6)
        for trained, modules in TRAINED.items()
    }
    for step in range(steps + 1):
        for data, trained in kinds:
            for name, parameter in model.named_parameters():
                parameter.requires_grad = module_of(name) in TRAINED[trained]
            examples = [rows[data][i] for i in range(batch)]
            start = time.process_time()
            model(**collate(examples), use_cache=False).loss.backward()
            optimizers[trained].step()
            if step:  # the first round warms up
                seconds[data, trained].append(time.process_time() - start)
            model.zero_grad(set_to_none=True)
    return {f"{data}, {trained}": statistics.median(values) for (data, trained), values in seconds.items()}


def saving(seconds: dict, rows: dict) -> float:
    """Share of the one-stage run's time that two stages save on so many rows of each kind."""
    later = rows["detailed"] * seconds["detailed, all"] + rows["text"] * seconds["text, all"]
    two, one = (rows["web"] * seconds[f"web, {trained}"] + later for trained in ("connector", "all"))
    return 1 - two / one


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="checkpoints/vift-micro")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    options = {"model_name": args.model, "steps": args.steps, "batch": args.batch}
    results = {}
    for checkpointing in (False, True):
        seconds = measure(**options, checkpointing=checkpointing)
        connector = seconds["web, connector"] / seconds["web, all"]
        row = {
            "connector_only_step": round(connector, 3),
            "saved_micro": round(saving(seconds, micro_rows()), 3),
            "saved_paper": round(saving(seconds, PAPER), 3),
        }
        results["gradient checkpointing" if checkpointing else "plain"] = row
        print(
            f"{list(results)[-1]}: a step of stage 1 takes {connector:.2f} of one that trains the language model too"
        )
        print(
            f"    two stages save {row['saved_micro']:.1%} (micro recipe), {row['saved_paper']:.1%} (paper)",
            flush=True,
        )
    if args.json:
        shape = options | {"threads": torch.get_num_threads(), "rows": micro_rows()}
        made = made_by(command_line(__file__, argv), args.model)
        write_json(args.json, {"made": made, **shape, "results": results})


if __name__ == "__main__":
    main()
