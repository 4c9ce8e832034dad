"""From the files of a processor and a model to a fused answer, one family after the other: a JSON object a line."""

import json
import tempfile
import traceback

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from modeling_vift import attach_fusion
from tests.modeling.processor_families import FAMILIES

FUSED, BETA = [1, 3], 0.3
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (70, 90, 3), dtype=np.uint8))


def prompt(text: str, picture: bool) -> list[dict]:
    content = [{"type": "image", "image": PICTURE}] * picture + [{"type": "text", "text": text}]
    return [{"role": "user", "content": content}]


def inputs_of(processor, *prompts) -> dict:
    if not processor.chat_template:  # Chameleon's has none
        texts = ["".join(part.get("text", processor.image_token) for part in p[0]["content"]) for p in prompts]
        images = [part["image"] for p in prompts for part in p[0]["content"] if "image" in part]
        out = processor(text=texts, images=images or None, return_tensors="pt", padding=True)
        return {k: v.double() if torch.is_floating_point(v) else v for k, v in out.items()}
    out = processor.apply_chat_template(
        list(prompts), tokenize=True, return_dict=True, return_tensors="pt", padding=True, add_generation_prompt=True
    )
    return {k: v.double() if torch.is_floating_point(v) else v for k, v in out.items()}


def with_hooks(model, inputs, edit) -> torch.Tensor:
    """Logits after the prompt, with the input x of decoder layer l replaced by edit(l, x)."""

    def hook(layer):
        def before(module, args, kwargs):
            if args:
                return (edit(layer, args[0]), *args[1:]), kwargs
            return args, kwargs | {"hidden_states": edit(layer, kwargs["hidden_states"])}

        return before

    layers = model.get_decoder().layers
    hooks = [layer.register_forward_pre_hook(hook(i), with_kwargs=True) for i, layer in enumerate(layers)]
    with torch.no_grad():
        logits = model(**inputs).logits[:, -1]
    for handle in hooks:
        handle.remove()
    return logits


def fused_by_hand(model, inputs, picture_ids) -> torch.Tensor:
    """The paper's equation on the native model, one row: two passes, with plain hooks on its layers."""
    states, text = {}, ~torch.isin(inputs["input_ids"][0], torch.tensor(picture_ids))
    with_hooks(
        model, {"input_ids": inputs["input_ids"][:, text]}, lambda layer, x: states.setdefault(layer, x.clone())
    )

    def edit(layer, x):
        x = x.clone()
        x[0, text] += (BETA if layer in FUSED else 0.0) * states[layer][0]
        return x

    return with_hooks(model, inputs, edit)


def run(family) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        family.write(folder)
        processor = AutoProcessor.from_pretrained(folder)
        model = AutoModelForImageTextToText.from_pretrained(folder).double().eval()
    inputs = inputs_of(processor, prompt("What is it?", True))
    greedy = {"max_new_tokens": 3, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    banned = {token for token in (model.config.image_token_id, getattr(model.config, "video_token_id", None)) if token}
    greedy["suppress_tokens"] = [*banned]
    picture_ids = [*banned, *processor.tokenizer.convert_tokens_to_ids(family.wrappers)]
    native, expected = model.generate(**inputs, **greedy), fused_by_hand(model, inputs, picture_ids)
    attach_fusion(model, processor=processor, fusion_beta=BETA, fusion_layers=FUSED)
    fused, off = model.generate(**inputs, **greedy), model.generate(**inputs, **greedy, fusion=False)
    both = inputs_of(processor, prompt("What is it?", True), prompt("And now, what else is there to see?", False))
    batch = model.generate(**both, **greedy)
    shown = native.logits[0][0] > torch.finfo(torch.float32).min  # Chameleon never answers in pictures
    expected, first = expected[0, shown], fused.logits[0][0, shown]
    largest = expected.abs().max()
    wrappers = processor.tokenizer.convert_ids_to_tokens(model.fusion_config.image_wrapper_token_ids)
    return {
        "family": family.title,
        "wrappers": sorted(wrappers),
        "error": float((first - expected).abs().max() / largest),
        "batch_error": float((batch.logits[0][0, shown] - expected).abs().max() / largest),
        "effect": float((first - native.logits[0][0, shown]).abs().max() / largest),
        "off_is_native": torch.equal(off.sequences, native.sequences) and torch.equal(off.logits[0], native.logits[0]),
        "answer": processor.decode(fused.sequences[0, inputs["input_ids"].shape[1] :]),
    }


def main(*names: str) -> None:
    for name in names:
        try:
            print(json.dumps(run(next(family for family in FAMILIES if name == family.title))), flush=True)
        except Exception as error:  # told as the result of this family; the others go on
            traceback.print_exc()
            print(json.dumps({"family": name, "raised": f"{type(error).__name__}: {error}"}), flush=True)
