"""Hidden states of pairs of an image and its words, once per layer and form, in files, as they outgrow memory.

An item is asked in two forms of the same content: *image* (picture, query) and *text* (caption, query). Where queries
differ, a third form, *control*, has another item's caption, of the same query if there is one: what it shares with the
image form the query alone explains. Of each form two vectors a layer are kept: the `last` token of the prompt, and the
`mean` over the tokens of its modality (image tokens, or the caption's).

Representation l is the input of decoder layer l, representation L the output of the last layer, before the final norm.
Files are `<form>_<pooling>.npy`, (L + 1, N, D) float32, read and written through memory maps, in a temporary folder
where none is named; `capture.json` says how many items are done, so that a run that was killed goes on at its last
batch. Shapes: N items, B rows, S tokens.
"""

import hashlib
import json
import random
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

PAD, TEXT, IMAGE = 0, 1, 2  # of token_modality
POOLINGS = ("last", "mean")
STATE = "capture.json"


def image_token_ids(config) -> list[int]:
    """Placeholder ids of images and, where the model has them, of videos.

    Raises:
        ValueError: the config names none.
    """
    ids = [getattr(config, name, None) for name in ("image_token_id", "video_token_id")]
    if ids[0] is None:
        raise ValueError(f"model_type={config.model_type!r} has no image placeholder (config.image_token_id)")
    return [i for i in ids if i is not None]


def token_modality(config, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
    """(B, S): PAD, TEXT or IMAGE of each token; ids that only wrap an image are text."""
    is_image = torch.isin(input_ids, torch.tensor(image_token_ids(config), device=input_ids.device))
    modality = torch.where(is_image, IMAGE, TEXT)
    return modality if attention_mask is None else torch.where(attention_mask.bool(), modality, PAD)


@contextmanager
def recording(model, keep):
    """While it lasts, `keep(l, hidden_states)` gets representation l (B, S, D) of every forward pass."""
    layers = model.get_decoder().layers

    def before(index):
        def hook(module, args, kwargs):
            keep(index, args[0] if args else kwargs["hidden_states"])

        return hook

    def after(module, args, output):
        keep(len(layers), output[0] if isinstance(output, tuple) else output)

    handles = [layer.register_forward_pre_hook(before(i), with_kwargs=True) for i, layer in enumerate(layers)]
    handles.append(layers[-1].register_forward_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass
class Capture:
    """What was captured; `states` reads one layer.

    Attributes:
        count (`int`): N items. num_layers (`int`): L decoder layers. forms (`tuple[str]`): image, text, maybe control.
        folder: where the files are. scratch: the temporary folder, which goes when this object does.
    """

    count: int
    num_layers: int
    forms: tuple[str, ...]
    folder: Path
    scratch: tempfile.TemporaryDirectory | None = field(default=None, repr=False)

    def states(self, form: str, pooling: str, layer: int) -> np.ndarray:
        """(N, D) float32 of representation `layer`; a copy, nothing stays mapped."""
        return np.array(np.load(self.folder / f"{form}_{pooling}.npy", mmap_mode="r")[layer])


def controls(pairs: list[dict], seed: int = 0) -> list[int]:
    """For each item another one, of the same query where there is one: whose caption its control form has."""
    rng, groups = random.Random(seed), {}
    for number, pair in enumerate(pairs):
        groups.setdefault(pair["query"], []).append(number)
    partner = [0] * len(pairs)
    for members in groups.values():
        rng.shuffle(members)
        for number, other in zip(members, members[1:] + members[:1]):
            partner[number] = other
    alone = [members[0] for members in groups.values() if len(members) == 1]
    for number in alone:
        partner[number] = (number + 1 + rng.randrange(len(pairs) - 1)) % len(pairs)
    return partner


def render(processor, query: str, caption: str | None = None) -> str:
    """The prompt: an image placeholder, or a caption, before the query."""
    words = " ".join(part for part in (caption, query) if part)
    content = [{"type": "image"}] if caption is None else []
    content += [{"type": "text", "text": words}] if words else []
    if getattr(processor, "chat_template", None):
        return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return f"{processor.image_token}\n{words}" if caption is None else words


def caption_tokens(tokenizer, prompt: str, caption: str, width: int) -> torch.Tensor:
    """Which of the `width` (left-padded) tokens of `prompt` overlap with `caption`, (width,).

    Raises:
        ValueError: the chat template has changed the caption.
    """
    start = prompt.find(caption)
    if start < 0 or not caption:
        raise ValueError(f"caption={caption!r} is not in the prompt that the chat template makes: {prompt!r}")
    offsets = tokenizer(prompt, return_offsets_mapping=True, add_special_tokens=False)["offset_mapping"]
    inside = [a < start + len(caption) and b > start and b > a for a, b in offsets]
    # special tokens that the tokenizer adds stand in front
    return torch.tensor([False] * (width - len(inside)) + inside)


def encode(model, processor, prompts: list[str], images: list | None = None, side: str = "left"):
    """Tensors of rendered prompts and their pictures, padded on `side`, on the model's device, pixels in its type."""
    options = {"images": images} if images else {}
    inputs = processor(text=prompts, padding=True, padding_side=side, return_tensors="pt", **options)
    inputs = inputs.to(model.device)
    if "pixel_values" in inputs:
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    return inputs


def model_inputs(model, processor, pairs: list[dict], form: str):
    """(inputs of the model, (B, S) which tokens are of the form's modality)."""
    image = form == "image"
    captions = [None if image else pair["control" if form == "control" else "caption"] for pair in pairs]
    prompts = [render(processor, pair["query"], caption) for pair, caption in zip(pairs, captions)]
    inputs = encode(model, processor, prompts, [[pair["image"]] for pair in pairs] if image else None)
    if image:
        kept = token_modality(model.config, inputs["input_ids"], inputs["attention_mask"]) == IMAGE
        if not kept.any(dim=1).all():
            row = int(kept.any(dim=1).int().argmin())
            raise ValueError(f"row {row} of the batch has no image token in its prompt")
    else:
        width = inputs["input_ids"].shape[1]
        kept = torch.stack([caption_tokens(processor.tokenizer, p, c, width) for p, c in zip(prompts, captions)])
    return inputs, kept.to(model.device)


@torch.inference_mode()
def pooled(model, inputs, kept: torch.Tensor) -> list[dict[str, np.ndarray]]:
    """A dict per representation: {"last": (B, D), "mean": (B, D)} float32. Prompts are left-padded."""
    states_of: dict[int, dict] = {}
    weights = kept.float() / kept.sum(dim=1, keepdim=True).clamp(min=1)

    def keep(layer: int, states: torch.Tensor) -> None:
        states = states.float()
        # not an einsum: a row's mean is the same in every batch
        mean = (states * weights.to(states)[..., None]).sum(dim=1)
        states_of[layer] = {"last": states[:, -1].cpu().numpy().copy(), "mean": mean.cpu().numpy()}

    with recording(model, keep):
        model(**inputs, use_cache=False, logits_to_keep=1)
    return [states_of[layer] for layer in sorted(states_of)]


def capture(model, processor, pairs: list[dict], folder=None, batch_size: int = 16, progress=None) -> Capture:
    """
    Args:
        model, processor: a VIFT, or a vision-language model of transformers with `get_decoder().layers`.
        pairs: rows with `image` (PIL), `caption`, `query` (may be ""); captured in this order.
        folder (`str` or `Path`, *optional*): where files go, kept and resumed; without it they are temporary.
        progress (*optional*): called with the number of items done.

    Raises:
        ValueError: no image placeholder, a row without caption, `folder` holds another capture.
    """
    image_token_ids(model.config)
    for number, pair in enumerate(pairs):
        if not pair.get("caption"):
            raise ValueError(f"row {number} has no caption")
    if len(pairs) < 3 or batch_size < 1:
        raise ValueError(f"{len(pairs)} pairs, batch_size={batch_size}: at least 3 and 1 are needed")
    forms = ("image", "text")
    if len({pair["query"] for pair in pairs}) > 1:
        forms = (*forms, "control")
        pairs = [pair | {"control": pairs[other]["caption"]} for pair, other in zip(pairs, controls(pairs))]
    config = model.config.get_text_config()
    shape = (config.num_hidden_layers + 1, len(pairs), config.hidden_size)
    scratch = tempfile.TemporaryDirectory(prefix="vift-capture-") if folder is None else None
    captured = Capture(len(pairs), config.num_hidden_layers, forms, Path(scratch.name if scratch else folder), scratch)
    done = open_files(captured.folder, forms, shape, fingerprint(model, pairs, batch_size, forms))
    for start in range(done, len(pairs), batch_size):
        rows = pairs[start : start + batch_size]
        for form in forms:
            write(captured.folder, form, start, pooled(model, *model_inputs(model, processor, rows, form)))
        mark(captured.folder, start + len(rows))
        if progress is not None:
            progress(start + len(rows))
    return captured


def write(folder: Path, form: str, start: int, layers: list[dict[str, np.ndarray]]) -> None:
    for pooling in POOLINGS:
        # mapped for this batch only: pages of the whole file would count as memory of this process
        array = np.load(folder / f"{form}_{pooling}.npy", mmap_mode="r+")
        for layer, states in enumerate(layers):
            array[layer, start : start + len(states[pooling])] = states[pooling]
        array.flush()


def fingerprint(model, pairs: list[dict], batch_size: int, forms) -> str:
    """What must be equal for a capture to go on where it stopped: weights, rows and how they are batched."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        total = float(parameter.detach().sum(dtype=torch.float32))
        digest.update(f"{name} {tuple(parameter.shape)} {total:.9e}".encode())
    for pair in pairs:
        digest.update(repr((pair["caption"], pair["query"], pair.get("control"))).encode())
        digest.update(pair["image"].tobytes())
    return hashlib.sha256(f"{digest.hexdigest()} {batch_size} {forms}".encode()).hexdigest()[:16]


def open_files(folder: Path, forms: tuple[str, ...], shape: tuple, digest: str) -> int:
    """Items that are done already; makes the files if there are none."""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / STATE).is_file():
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        if state["fingerprint"] != digest:
            raise ValueError(f"{folder} holds the capture of another model or other rows: remove it or name another")
        return state["done"]
    for name in (f"{form}_{pooling}.npy" for form in forms for pooling in POOLINGS):
        np.lib.format.open_memmap(folder / name, mode="w+", dtype=np.float32, shape=shape).flush()
    (folder / STATE).write_text(json.dumps({"fingerprint": digest, "done": 0}) + "\n", encoding="utf-8")
    return 0


def mark(folder: Path, done: int) -> None:
    state = json.loads((folder / STATE).read_text(encoding="utf-8")) | {"done": done}
    part = folder / f"{STATE}.part"
    part.write_text(json.dumps(state) + "\n", encoding="utf-8")
    part.replace(folder / STATE)
