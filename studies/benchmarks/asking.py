"""Questions about pictures for the bundled model, what `generate()` answers, and the same asked of a vLLM engine.

python -m tests.serve.asked < job.json > answers.json     # an engine of its own process, as `in_engine` starts it
"""

import json
import os
import random
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import torch
from PIL import Image

from vift_microworld.questions import ask_any
from vift_microworld.scenes import render, sample_scenes

ROOT = Path(__file__).resolve().parents[2]
MICRO = ROOT / "checkpoints" / "vift-micro"
UNSALTED = "VIFT_TEST_UNSALTED"  # an engine whose prefix cache knows nothing of fusion
TOKENS, TOP = 16, 5  # of an answer; whose first log-probabilities are compared
SETTINGS = {
    "unfused": {"fusion": False},
    "top half": {"alpha": 1.0, "beta": 0.2, "fusion_layers": 0.5, "fusion_answer": False},
    "checkpoint's, prompt only": {"fusion_answer": False},
    "checkpoint's, answer too": {},
    "after_image": {
        "alpha": 0.5, "beta": 0.5, "fusion_layers": "2:6", "fusion_span": "after_image", "fusion_answer": False
    },
}  # fmt: skip
OTHERS = {
    "all layers, norm, answer": {"alpha": 1.0, "beta": 0.3, "fusion_layers": 1.0, "fusion_norm": True},
    "reference": {"alpha": 1.0, "beta": 0.3, "fusion_span": "reference", "fusion_answer": False},
    "reference, answer": {"alpha": 0.9, "beta": 0.2, "fusion_span": "reference", "fusion_layers": "0:4"},
    "preset": {"fusion": "instruction"},
    "first left out": {"dose": 1.0, "alpha": 1.0, "fusion_layers": [0, 3], "fusion_skip_first": True},
}


@cache
def pictures(count: int) -> list[tuple[Image.Image, str]]:
    """(picture, question) of test scenes."""
    scenes = sample_scenes(count, 7, "test")
    asked = [ask_any(scene, random.Random(i)) for i, scene in enumerate(scenes)]
    return [(Image.fromarray(pixels), question) for pixels, (_, question, _) in zip(render(scenes), asked)]


def chat(question: str, *more: str, image: bool = True) -> list[dict]:
    """Messages of a conversation: questions and answers in turn, the first with the picture."""
    first = [{"type": "image"}, {"type": "text", "text": question}] if image else question
    rest = [{"role": ("assistant", "user")[i % 2], "content": text} for i, text in enumerate(more)]
    return [{"role": "user", "content": first}, *rest]


@cache
def reference():
    from transformers import LlavaProcessor

    from modeling_vift import VIFTForConditionalGeneration

    model = VIFTForConditionalGeneration.from_pretrained(MICRO, dtype=torch.float32).eval()
    return model, LlavaProcessor.from_pretrained(MICRO)


@torch.no_grad()
def generated(job: list[dict]) -> list[dict]:
    """`generate()`'s answer to each {"picture", "messages", "settings"}: its ids, and the first token's logits."""
    model, processor = reference()
    processor.tokenizer.padding_side = "left"
    groups, answers = {}, {}
    for place, one in enumerate(job):
        groups.setdefault((json.dumps(one["settings"]), '"image"' in json.dumps(one["messages"])), []).append(place)
    for (_, has_image), places in groups.items():
        texts = [text_of(processor, job[place]) for place in places]
        images = [pictures(job[place]["picture"] + 1)[-1][0] for place in places] if has_image else None
        inputs = processor(text=texts, images=images, return_tensors="pt", padding=True)
        options = {"do_sample": False, "max_new_tokens": TOKENS, "output_scores": True}
        settings = job[places[0]]["settings"]
        output = model.generate(**inputs, **options, **settings, return_dict_in_generate=True)
        rows = output.sequences[:, inputs["input_ids"].shape[1] :].tolist()
        first = output.scores[0].float().log_softmax(-1).tolist()
        end = model.generation_config.eos_token_id
        for place, ids, logits in zip(places, rows, first, strict=True):
            ids = ids[: ids.index(end) + 1] if end in ids else ids
            answers[place] = {"ids": ids, "first": logits}
    return [answers[place] for place in range(len(job))]


def text_of(processor, one: dict) -> str:
    return processor.apply_chat_template(one["messages"], add_generation_prompt=True, tokenize=False)


def in_engine(waves: list[list[dict]], seconds: int = 600, env: dict | None = None, **engine):
    """
    The same of a vLLM engine, the jobs of a wave at once.

    Returns (answers of each wave, with log-probabilities of the first token's best, and what the engine counted:
    `num_preemptions`, `prefix_cache_hits`).
    """
    with tempfile.TemporaryDirectory() as folder:
        job, output = Path(folder, "job.json"), Path(folder, "answers.json")
        job.write_text(json.dumps({"waves": waves, "engine": engine}))
        command = [sys.executable, __file__, str(job), str(output)]
        process = subprocess.run(
            command, cwd=ROOT, env=engine_environment() | (env or {}), capture_output=True, text=True, timeout=seconds
        )
        if process.returncode:
            raise RuntimeError(process.stdout[-3000:] + process.stderr[-6000:])
        return json.loads(output.read_text())


def engine_environment() -> dict:
    own = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    return os.environ | own | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def start_engine(**engine):
    from vllm import LLM

    defaults = {
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 256,
        "max_num_seqs": 16,
        "disable_log_stats": False,
    }
    return LLM(**{"model": str(MICRO)} | defaults | engine)


def ask(llm, jobs: list[dict]) -> list[dict]:
    from transformers import LlavaProcessor
    from vllm import SamplingParams

    processor, prompts, params = LlavaProcessor.from_pretrained(MICRO), [], []
    for one in jobs:
        text = text_of(processor, one)
        image = {"multi_modal_data": {"image": pictures(one["picture"] + 1)[-1][0]}} if "<image>" in text else {}
        prompts.append({"prompt": text} | image)
        params.append(SamplingParams(temperature=0, max_tokens=TOKENS, logprobs=TOP, extra_args=one["settings"]))
    answers = []
    for output in llm.generate(prompts, params, use_tqdm=False):
        best = {token: one.logprob for token, one in output.outputs[0].logprobs[0].items()}
        answers.append({"ids": list(output.outputs[0].token_ids), "first": best})
    return answers


def difference(job: list[dict], answers: list[dict]) -> tuple[int, float]:
    """(answers whose ids equal `generate()`'s, largest difference of a log-probability of a first token)."""
    expected, equal, largest = generated(job), 0, 0.0
    for one, own in zip(expected, answers, strict=True):
        equal += one["ids"] == own["ids"]
        largest = max([largest, *(abs(one["first"][int(token)] - value) for token, value in own["first"].items())])
    return equal, largest


def main():
    job = json.loads(Path(sys.argv[1]).read_text())
    if os.environ.get(UNSALTED):
        from vift_serve import scheduler

        scheduler.salt_request = lambda *args: None
    llm = start_engine(**job["engine"])
    answers = [ask(llm, wave) for wave in job["waves"]]
    counted = {metric.name.removeprefix("vllm:"): getattr(metric, "value", None) for metric in llm.get_metrics()}
    Path(sys.argv[2]).write_text(json.dumps([answers, counted]))


if __name__ == "__main__":
    main()
