"""Ability fusion: what is written where (the plan of a `generate()`), and the algebra (the edit of one forward pass).

`h'(v,q) = alpha * h(v,q) + beta * h(q)` (arXiv 2502.11427): at the input of each fused decoder layer, the hidden
states of the text tokens in the image run `h(v,q)` are mixed with those of the same tokens in a run without the image,
`h(q)`, the *text stream*. Prompt tokens only, unless `fusion_answer` is on: the effect lives in the KV cache.
Shapes: B prompts, S tokens in the padded prompt, N text tokens of all prompts that hold an image, row after row, M
places that are written, D hidden size.
"""

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace

import torch

from .settings_vift import FusionSettings

# of this thread: nothing is kept on a module, so that threads do not mix and an exception leaves nothing behind
_RUNNING = ContextVar("vift_running_generate", default=(None, None))


@contextmanager
def running(model, plan):
    token = _RUNNING.set((model, plan))
    try:
        yield
    finally:
        _RUNNING.reset(token)


def running_plan():
    """(model, `FusionPlan` or None) of the `generate()` that runs in this thread; (None, None) outside one."""
    return _RUNNING.get()


def check_seen(planned, seen) -> None:
    """Raises a ValueError that names the planned layers that are not, or were not, fused at their input."""
    if missing := sorted(set(planned) - set(seen)):
        reason = "they or the language model were replaced, moved or wrapped in what does not hand `fusion` on"
        raise ValueError(f"fusion_layers={sorted(planned)} cannot be fused at {missing}: {reason}")


@dataclass
class FusionEdit:
    """The algebra, for one forward pass: called with the input of each decoder layer."""

    settings: FusionSettings  # rule and norm
    alpha: float | torch.Tensor  # (M, 1)
    beta: float | torch.Tensor  # (M, 1)
    text_states: dict[int, torch.Tensor]  # layer -> (N, D), h(q)
    image_states: dict[int, torch.Tensor] | None  # the same of the unfused h(v,q), for rules that read it
    rows: torch.Tensor  # (M,), places to write in the (B, S) batch at hand
    columns: torch.Tensor
    source: torch.Tensor  # (M,), which of the N states goes there
    written: set[int] = field(default_factory=set, init=False)  # layers

    def __call__(self, layer: int, hidden_states: torch.Tensor) -> torch.Tensor:
        """hidden_states (B, S, D) at the input of `layer` -> the same with the fused tokens written (a new tensor)."""
        if layer not in self.text_states:
            return hidden_states
        device, dtype = hidden_states.device, torch.promote_types(hidden_states.dtype, torch.float32)
        places, source = (self.rows.to(device), self.columns.to(device)), self.source.to(device)
        alpha, beta = (c.to(device, dtype) if isinstance(c, torch.Tensor) else c for c in (self.alpha, self.beta))
        x = hidden_states[places].to(dtype)
        h_q = self.text_states[layer].to(device)[source].to(dtype)
        h_vq = None if self.image_states is None else self.image_states[layer].to(device)[source].to(dtype)
        if h_vq is None:  # "cascade"; "additive" with alpha = 1 is the same
            fused = alpha * x + beta * h_q
        elif self.settings.rule == "additive":
            fused = x + beta * h_q - (1 - alpha) * h_vq
        else:
            fused = alpha * h_vq + beta * h_q
        if self.settings.norm:
            fused = fused * (x.norm(dim=-1, keepdim=True) / fused.norm(dim=-1, keepdim=True).clamp_min(1e-12))
        self.written.add(layer)
        return hidden_states.index_put(places, fused.to(hidden_states.dtype))


@dataclass
class FusionPlan:
    """What a fused `generate()` writes where, for its whole prompts."""

    settings: FusionSettings  # alpha and beta as floats, or one for each row before expansion
    text_run: object  # where h(q) comes from (`text_run_vift`), asked again when the answer is fused too
    whole: FusionEdit  # the edit of all tokens, before any expansion
    batch_size: int  # B
    length: int  # S
    asked: bool = field(default=False, init=False)  # for the edit of a forward pass

    def edit(self, batch_size: int, length: int, offset: int) -> FusionEdit | None:
        """The part that falls on tokens offset ... offset + length - 1 of a batch expanded to `batch_size` rows."""
        inside = (self.whole.columns >= offset) & (self.whole.columns < offset + length)
        if not bool(inside.any()):
            return None
        expand = batch_size // self.batch_size  # by beams or return sequences
        rows = (self.whole.rows[inside, None] * expand + torch.arange(expand, device=inside.device)).flatten()

        def of_place(value):
            return value.to(rows.device)[rows // (batch_size // len(value)), None] if torch.is_tensor(value) else value

        return replace(
            self.whole,
            alpha=of_place(self.settings.alpha),
            beta=of_place(self.settings.beta),
            rows=rows,
            columns=(self.whole.columns[inside] - offset).repeat_interleave(expand),
            source=self.whole.source[inside].repeat_interleave(expand),
        )
