"""The models of `latency.py`, and the ways to ask them: what each is, its docstring says."""

import functools
import itertools
import time
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, LlavaConfig, LlavaForConditionalGeneration, LogitsProcessor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from modeling_vift import VIFTConfig, VIFTForConditionalGeneration

ROOT = Path(__file__).resolve().parents[2]
IMAGE, CAPTION = 5, 32
# Qwen2.5-0.5B and SigLIP-so400m with a quarter of the layers and of the vocabulary: the same shares of the work
TEXT = {
    "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 6, "vocab_size": 37984,
    "num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True,
}  # fmt: skip
VISION = {
    "model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 7,
    "num_attention_heads": 16, "patch_size": 14, "vision_use_head": False,
}  # fmt: skip
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 512}
SHAPES = {  # (language model, tower)
    "0.5B/4": (TEXT, VISION),
    "7B": (VIFTConfig().text_config.to_dict(), VIFTConfig().vision_config.to_dict()),
    "tiny": (TEXT | SMALL | {"num_attention_heads": 2}, VISION | {"num_attention_heads": 2} | SMALL),
}
WAYS = ("plain", "fused", "kept", "answer", "two_passes", "three_passes", "guidance", "caption", "repeng")


class Clock(LogitsProcessor):
    """Notes the time at which each token's logits are there: this process's on a CPU, the clock's on a GPU."""

    def __init__(self, device: str = "cpu"):
        self.device, self.stamps = device, []
        self.start = self.now()

    def now(self) -> float:
        if self.device == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def __call__(self, input_ids, scores):
        self.stamps.append(self.now())
        return scores

    @property
    def first(self) -> float:
        """Seconds to the first token."""
        return self.stamps[0] - self.start

    @property
    def steps(self) -> list[float]:
        """Seconds of each further one."""
        return [after - before for before, after in itertools.pairwise(self.stamps)]


def build(shape: str, image_tokens: int, device: str):
    """(VIFT, Llava of transformers with the same weights: the same tensors, other modules)."""
    if shape == "micro":
        path = ROOT / "checkpoints" / "vift-micro"
        fused = AutoModelForImageTextToText.from_pretrained(path, trust_remote_code=True, dtype=torch.float32)
        config = fused.config
    else:
        text, vision = SHAPES[shape]
        vision = vision | {"image_size": vision["patch_size"] * round(image_tokens**0.5)}
        config = VIFTConfig(
            vision_config=vision, text_config=text, image_token_index=IMAGE, image_seq_length=image_tokens,
            vision_feature_layer=-1, tie_word_embeddings=text["tie_word_embeddings"],
        )  # fmt: skip
        torch.manual_seed(0)
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        with torch.device(device):
            fused = VIFTForConditionalGeneration._from_config(config, dtype=dtype)
    given = {name: value for name, value in config.to_dict().items() if name in LlavaConfig().to_dict()}
    with torch.device("meta"):
        plain = LlavaForConditionalGeneration(LlavaConfig(**(given | {"model_type": "llava"})))
    plain.to_empty(device="cpu")
    plain.load_state_dict(fused.state_dict(), assign=True)
    plain.tie_weights()
    # buffers that no checkpoint holds
    for ours, theirs in zip(plain.modules(), fused.modules(), strict=True):
        for name in ours._non_persistent_buffers_set:
            setattr(ours, name, getattr(theirs, name))
    for model in (fused, plain):
        model.eval()
        model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    return fused, plain


class Cell:
    """One prompt shape, asked in every way; `run(way, tokens)` gives the `Clock` of one call."""

    def __init__(self, shape, image_tokens, text_tokens, batch, tower, device="cpu"):
        self.fused, self.plain = build(shape, image_tokens, device)
        self.device = device
        config = self.fused.config
        self.layers, self.image_tokens = config.text_config.num_hidden_layers, image_tokens
        self.band = list(range(self.layers // 2, self.layers))
        random = torch.Generator().manual_seed(0)
        low = max(IMAGE, config.image_token_id) + 1
        text = torch.randint(low, config.text_config.vocab_size, (batch, text_tokens), generator=random)
        before = text_tokens // 4  # a system prompt
        pictures = torch.full((batch, image_tokens), config.image_token_id)
        ids = torch.cat([text[:, :before], pictures, text[:, before:]], dim=1).to(device)
        text = text.to(device)
        self.text = {"input_ids": text, "attention_mask": torch.ones_like(text)}
        self.prompt = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        self.columns = [*range(before), *range(before + image_tokens, ids.shape[1])]
        size, batch_of = config.vision_config.image_size, {"generator": random}
        here = (device, self.fused.dtype)
        pixels = torch.rand(batch, 3, size, size, **batch_of).to(*here)
        features = (torch.randn(batch, image_tokens, config.text_config.hidden_size, **batch_of) * 0.02).to(*here)
        self.image = lambda: (
            {"pixel_values": pixels}
            if tower
            else {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=list(features))}}
        )
        self.stream = self.fused.text_run(**self.prompt, fusion_layers=self.band)
        self.vectors = {layer: torch.randn(config.text_config.hidden_size).to(*here) for layer in self.band}
        self.limit = self._limit(config, text_tokens, tower)

    def _limit(self, config, text_tokens: int, tower: bool) -> float:
        c, v = config.text_config, config.vision_config
        heads = c.hidden_size + 2 * c.num_key_value_heads * c.hidden_size // c.num_attention_heads
        layer = c.hidden_size * (heads + c.hidden_size + 3 * c.intermediate_size)
        vision = v.num_hidden_layers * (4 * v.hidden_size**2 + 2 * v.hidden_size * v.intermediate_size)
        vision += c.hidden_size * (v.hidden_size + c.hidden_size)
        whole = (self.image_tokens + text_tokens) * self.layers * layer + tower * self.image_tokens * vision
        return 1 + text_tokens * max(self.band) * layer / whole

    @torch.no_grad()
    def run(self, way: str, tokens: int) -> Clock:
        clock = Clock(self.device)
        greedy = {"max_new_tokens": tokens, "do_sample": False, "logits_processor": [clock]}
        ask = functools.partial(self.plain.generate, **self.prompt, **self.image(), **greedy)
        if way == "plain":
            ask()
        elif way in ("fused", "kept", "answer"):
            fusion = {"fusion": True, "alpha": 1.0, "beta": 0.1, "fusion_layers": self.band}
            fusion["fusion_answer"] = way == "answer"
            stream = {"text_stream": self.stream} if way == "kept" else {}
            self.fused.generate(**self.prompt, **self.image(), **greedy, **fusion, **stream)
        elif way in ("two_passes", "three_passes"):
            states = self.plain(**self.text, output_hidden_states=True).hidden_states
            if way == "three_passes":
                self.plain(**self.prompt, **self.image(), output_hidden_states=True)
            self._with_hooks(states, ask)
        elif way == "guidance":
            negative = {f"negative_prompt_{name.removeprefix('input_')}": value for name, value in self.text.items()}
            negative["negative_prompt_attention_mask"] = negative.pop("negative_prompt_attention_mask")
            ask(guidance_scale=1.5, **negative)
        elif way == "caption":
            output = self.plain.generate(**self.prompt, **self.image(), max_new_tokens=CAPTION, do_sample=False)
            ids = torch.cat([output[:, -CAPTION:], self.text["input_ids"]], dim=1)
            self.plain.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **greedy)
        elif way == "repeng":
            self._with_repeng(ask)
        return clock

    def _with_hooks(self, states, ask) -> None:
        columns = torch.tensor(self.columns)

        def add(layer, module, args):
            if args[0].shape[1] == 1:
                return None
            args[0][:, columns] += 0.1 * states[layer]
            return args

        layers = self.plain.model.language_model.layers
        hooks = [layers[layer].register_forward_pre_hook(functools.partial(add, layer)) for layer in self.band]
        ask()
        [hook.remove() for hook in hooks]

    def _with_repeng(self, ask) -> None:
        class Wrapped:  # repeng looks for `.model.layers`
            model = self.plain.model.language_model

        control = repeng().ControlModel(Wrapped(), [layer - 1 for layer in self.band])
        control.set_raw_control({layer - 1: 0.1 * self.vectors[layer] for layer in self.band})
        try:
            ask()
        finally:
            control.unwrap()

    def peak(self, way: str) -> int:
        """Bytes."""
        from torch.profiler import ProfilerActivity, profile

        if self.device != "cpu":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self.run(way, 2)
            return torch.cuda.max_memory_allocated() - before
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            self.run(way, 2)
        events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
        return max(itertools.accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))


@functools.cache
def repeng():
    """The library, or None: 0.4.0 names `np.float_`, which NumPy 2 took away."""
    np.float_ = np.float64
    try:
        import repeng
    except ImportError:
        return None
    return repeng
