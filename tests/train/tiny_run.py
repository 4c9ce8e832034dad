"""A tiny model, tiny rows and a run of the trainer over them, shared by the trainer's tests."""

import random

from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PIL

from tests.modeling.checkpoint import chat, save_checkpoint
from vift_train.config import VIFTTrainingConfig
from vift_train.trainer import VIFTTrainer

WORDS = "what colour is the digit red green blue left right".split()
PART = {"type": Value("string"), "text": Value("string")}
FEATURES = Features(
    id=Value("string"),
    messages=List({"role": Value("string"), "content": List(PART)}),
    images=List(Image()),
    modality=Value("string"),
    length=Value("int64"),
)


def row(number: int, modality: str, answer="red left") -> dict:
    rng = random.Random(f"{modality}{number}")
    question = " ".join(rng.choices(WORDS, k=rng.randint(2, 12)))
    messages = chat(*([None] if modality == "image" else []), question)
    return {
        "id": f"{modality}-{number}",
        "messages": [*messages, {"role": "assistant", "content": [{"type": "text", "text": answer}]}],
        "images": [PIL.new("RGB", (16, 16), (number * 29 % 256, 80, 0))] if modality == "image" else [],
        "modality": modality,
        "length": len(question.split()),
    }


def rows(images: int, texts: int) -> list[dict]:
    found = [row(i, "image") for i in range(images)] + [row(i, "text") for i in range(texts)]
    random.Random(0).shuffle(found)
    return found


def dataset(images: int, texts: int) -> Dataset:
    return Dataset.from_list(rows(images, texts), features=FEATURES)


def load(folder):
    from transformers import AutoProcessor

    from modeling_vift import VIFTForConditionalGeneration

    model = VIFTForConditionalGeneration.from_pretrained(folder)
    return model, AutoProcessor.from_pretrained(folder, trust_remote_code=True)


def trainer(folder, output, data=None, cls=VIFTTrainer, peft_config=None, eval_dataset=None, **kwargs) -> VIFTTrainer:
    """A trainer on the checkpoint in `folder` (made if there is none)."""
    if not (folder / "config.json").exists():
        save_checkpoint(folder)
    model, processor = load(folder)
    options = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_steps": 3,
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "activation_checkpointing": False,
        "dataloader_pin_memory": False,
    }
    args = VIFTTrainingConfig(output_dir=str(output), **(options | kwargs))
    data = dataset(13, 6) if data is None else data
    extra = {"peft_config": peft_config, "eval_dataset": eval_dataset}
    return cls(model, args, data, processing_class=processor, **extra)


def losses(run: VIFTTrainer) -> list[float]:
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]
