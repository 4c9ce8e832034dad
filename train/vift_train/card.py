"""The card that a checkpoint of `VIFTTrainer` carries: what it is, how it is asked, how it was trained.

TRL's own card shows a text pipeline, which cannot load a VIFT. `vift-push` replaces this one by the full card with
evaluation and limits.
"""

import datasets
import torch
import transformers
import trl
from huggingface_hub import ModelCard, ModelCardData

CARD = """# {name}

Trained by `VIFTTrainer`, stage {stage}, for {steps} steps: {trained}. A vision-language model that fuses the hidden
states of its prompt with the image and without it when it answers
([arXiv 2502.11427](https://arxiv.org/abs/2502.11427)).

## Quick start

```python
from transformers import pipeline

pipe = pipeline("image-text-to-text", model="{repo}", trust_remote_code=True)
content = [{{"type": "image", "url": "picture.png"}}, {{"type": "text", "text": "What is in the picture?"}}]
answer = pipe(text=[{{"role": "user", "content": content}}], max_new_tokens=128, return_full_text=False)
print(answer[0]["generated_text"])
```

`trust_remote_code=True` runs the Python files beside the weights: read them, and pin a `revision`.

Trained with TRL {trl}, transformers {transformers}, torch {torch}, datasets {datasets}.
"""


def training_card(args, state, repo: str, tags: list[str]) -> ModelCard:
    """The card of a checkpoint trained with `args` (`VIFTTrainingConfig`) up to `state` (`TrainerState`)."""
    parts = ("vision_tower", "connector", "language_model")
    trained = [part.replace("_", " ") for part in parts if getattr(args, f"train_{part}")]
    if args.train_language_model and args.train_layers:
        trained[-1] += f" (layers {args.train_layers})"
    versions = {module.__name__: module.__version__ for module in (trl, transformers, torch, datasets)}
    text = CARD.format(
        name=repo.split("/")[-1],
        repo=repo,
        stage=args.stage,
        steps=state.global_step,
        trained=", ".join(trained) + " trained",
        **versions,
    )
    data = ModelCardData(library_name="transformers", pipeline_tag="image-text-to-text", tags=tags)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")
