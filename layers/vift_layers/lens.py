"""The logit-lens rule: where to fuse, from how well the model's own head reads the answer off each layer.

The linear accessibility of a layer (arXiv 2604.15557, there for steering vectors) is the share of prompts whose answer
the head, applied to the last token's state after the final norm, prefers to the answers of the other prompts. It needs
no training and no fused run: one plain pass over the prompts. The band is the range of layers around the one at whose
*input*, where fusion happens, accessibility peaks, in which it has at least half of its rise over the first layer.

Shapes: B rows, S tokens, D hidden size, L layers, C different answers.
"""

import numpy as np
import torch

from .band import SHARE, around
from .capture import recording


@torch.inference_mode()
def lens_profile(model, batches: list[dict]) -> list[float]:
    """
    Args:
        model: a VIFT, or a vision-language model of transformers with `get_decoder()` that has `layers` and `norm`.
        batches: inputs of the model, right-padded, with `labels` (B, S): -100 but for the answer's tokens. The first
            of them is what the prompt's last token should say.

    Returns:
        L + 1 shares in [0, 1]: of representations 0 ... L (`vift_layers.capture`).

    Raises:
        ValueError: fewer than two different answers, between which nothing could be told.
    """
    norm, head = model.get_decoder().norm, model.get_output_embeddings()
    first = [(batch["labels"] != -100).int().argmax(dim=1) for batch in batches]
    targets = [batch["labels"].gather(1, at[:, None])[:, 0] for batch, at in zip(batches, first)]
    answers, index = torch.unique(torch.cat(targets), return_inverse=True)
    if len(answers) < 2:
        raise ValueError(f"the {len(index)} prompts have {len(answers)} different answers: the lens needs two or more")
    right = np.zeros(model.config.get_text_config().num_hidden_layers + 1)
    for batch, at, target in zip(batches, first, index.split([len(one) for one in targets])):

        def keep(layer: int, states: torch.Tensor, at=at, target=target) -> None:
            last = states[torch.arange(len(at), device=states.device), at - 1]  # (B, D)
            said = head(norm(last))[:, answers].argmax(dim=-1)  # (B,) of C
            right[layer] += int((said == target).sum())

        inputs = {name: value for name, value in batch.items() if name != "labels"}
        with recording(model, keep):
            model(**inputs, use_cache=False, logits_to_keep=1)
    return (right / len(index)).round(4).tolist()


def lens_band(profile: list[float]) -> str:
    """The rule's band of layers, "first:stop", from `lens_profile`.

    Raises:
        ValueError: a profile of fewer than two representations.
    """
    if len(profile) < 2:
        raise ValueError(f"profile has {len(profile)} values: one before the first layer and one after each is needed")
    inputs = np.array(profile[:-1])  # nothing is fused behind the last layer
    peak = int(inputs.argmax())
    first, stop = around(inputs, peak, inputs[0] + SHARE * (inputs[peak] - inputs[0]))
    return f"{first}:{stop}"
