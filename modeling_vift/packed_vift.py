"""Both runs of a short prompt in one pass, so that the weights are read once.

A text pass of few tokens costs the reading of its weights, not its matrix work. Packed, each row is
[run with image, S tokens | run without, T tokens]: a mask keeps the two apart, the layers' hooks fuse from the second
into the first (arXiv 2502.11427), and what the second left behind is cropped. The same as a pass of its own up to
rounding. Shapes: B rows, N text tokens of all rows, D hidden size.
"""

from dataclasses import dataclass, replace

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from .fusion_vift import PendingRun, PromptFusion, position_in_row

# Most tokens of both runs of all rows, and of the text runs alone, that are faster in one pass: on a CPU the mask soon
# costs more than is saved (measured, docs/performance.md), elsewhere more text is bound by compute (worked out).
MOST_ON_CPU, MOST_ELSEWHERE = (300, 300), (1024, 256)


def gains_by_packing(model, settings, input_ids, rows) -> bool:
    """Whether both runs of these prompts are faster in one pass; `rows` (N,) are those of the text tokens."""
    decoder, (most, most_text) = model.get_decoder(), MOST_ON_CPU if model.device.type == "cpu" else MOST_ELSEWHERE
    depth, strength = decoder.config.num_hidden_layers, (settings.alpha, settings.beta)
    return (
        input_ids.numel() + len(rows) <= most
        and len(rows) <= most_text
        and 4 * (depth - max(settings.layers)) <= depth  # a packed text run goes on to the last layer
        and (
            any(isinstance(x, torch.Tensor) for x in strength) or strength != (1.0, 0.0)
        )  # bit for bit the unfused run
        and len(torch.unique(rows)) == len(input_ids)  # so are rows without an image
        and decoder._compiled_call_impl is None
        and decoder.config._attn_implementation in ("sdpa", "eager")  # which take a mask of any form
    )


def can_pack(model, plan: PromptFusion, model_inputs: dict, cache) -> bool:
    """Whether this step of `generate()` is the whole prefill, into a cache that can forget, and nobody looks on."""
    decoder, ids, mask = model.get_decoder(), model_inputs.get("input_ids"), model_inputs.get("attention_mask")
    outputs = ("output_hidden_states", "output_attentions")
    asked = any(model_inputs.get(name) or getattr(decoder.config, name, False) for name in outputs)
    hooks = [h for m in decoder.layers.modules() for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
    owners = {getattr(getattr(hook, "func", hook), "__module__", None) or "" for hook in hooks}
    silent = (f"{__package__}.", "transformers.")  # theirs sleep unless asked
    return (
        type(cache) is DynamicCache
        and bool(cache.layers)
        and all(type(layer) is DynamicLayer for layer in cache.layers)  # no sliding window
        and cache.get_seq_length() == 0
        and ids is not None
        and model_inputs.get("inputs_embeds") is None
        and len(ids) == plan.batch_size
        and ids.shape[1] >= plan.length
        and (mask is None or mask.ndim == 2)
        and not asked
        and all(owner.startswith(silent) for owner in owners)
    )


@dataclass(frozen=True)
class PackedFusion:
    """
    Stands in the place of a `PromptFusion` for a prefill that makes its own text streams.

    Attributes:
        plan (`PromptFusion`): what to write where, without text states.
        length (`int`): S.
        rows, places (`torch.Tensor` of shape (N,)): where each text token's h(q) is in the packed (B, S + T) batch.
        columns, positions (`torch.Tensor` of shape (B, T)): of each packed token, its place in the run with image and
            its position in the run without.
        valid (`torch.BoolTensor` of shape (B, T)): False on the padding of rows with less text.
        shared (`torch.BoolTensor` of shape (B, S)): tokens whose states are the same in both runs, not packed.
    """

    plan: PromptFusion
    length: int
    rows: torch.Tensor
    places: torch.Tensor
    columns: torch.Tensor
    positions: torch.Tensor
    valid: torch.Tensor
    shared: torch.Tensor

    @classmethod
    def of(cls, plan: PromptFusion, length: int, pending: PendingRun) -> "PackedFusion":
        """`plan` for a prefill of `length` tokens a row."""
        rows, columns, first_image = pending.rows, pending.columns, pending.first_image
        # with this span nothing is fused before the image: the text there is the same in both runs
        is_shared = (columns < first_image[rows]) & (plan.settings.span == "after_image")
        own, index = rows[~is_shared], position_in_row(rows[~is_shared])
        places = columns.clone()
        places[~is_shared] = length + index
        size = (plan.batch_size, int(index.max()) + 1)

        def spread(values, dtype=torch.long):
            return torch.zeros(size, dtype=dtype, device=rows.device).index_put((own, index), values)

        shared = torch.zeros((plan.batch_size, length), dtype=torch.bool, device=rows.device)
        shared[rows[is_shared], columns[is_shared]] = True
        return cls(
            plan,
            length,
            rows,
            places,
            columns=spread(columns[~is_shared]),
            positions=spread(position_in_row(rows)[~is_shared]),
            valid=spread(torch.ones_like(own, dtype=torch.bool), torch.bool),
            shared=shared,
        )

    def __call__(self, layer: int, hidden_states: torch.Tensor) -> torch.Tensor:
        """hidden_states (B, S + T, D) at the input of `layer` -> the same with the first run fused (a new tensor)."""
        if layer not in self.plan.settings.layers:
            return hidden_states
        stream = hidden_states[self.rows.to(hidden_states.device), self.places.to(hidden_states.device)]
        return replace(self.plan, text_states={layer: stream})(layer, hidden_states)

    def pack(self, kwargs: dict, attention: str) -> dict:
        """The language model's arguments with the text run behind the run with image."""
        embeds, mask, positions = (kwargs.get(name) for name in ("inputs_embeds", "attention_mask", "position_ids"))
        batch_size, length, width = embeds.shape
        device, packed = embeds.device, self.columns.shape[1]
        text = embeds.gather(1, self.columns.to(device)[..., None].expand(-1, -1, width))
        if positions is None:
            positions = torch.arange(length, device=device)[None]
        mask = torch.ones((batch_size, length), dtype=torch.bool, device=device) if mask is None else mask.bool()
        seen = torch.zeros((batch_size, length + packed, length + packed), dtype=torch.bool, device=device)
        seen[:, :length, :length] = mask[:, None]
        seen[:, length:, :length] = self.shared.to(device)[:, None]
        seen[:, length:, length:] = self.valid.to(device)[:, None]
        seen.tril_().diagonal(dim1=1, dim2=2).fill_(True)  # padding sees itself: no row of the softmax is empty
        if attention == "eager":
            lowest = torch.finfo(embeds.dtype).min
            seen = torch.zeros(seen.shape, dtype=embeds.dtype, device=device).masked_fill_(~seen, lowest)
        positions = torch.cat([positions.expand(batch_size, -1), self.positions.to(positions.device)], dim=1)
        both = {"inputs_embeds": torch.cat([embeds, text], dim=1), "position_ids": positions}
        return kwargs | both | {"attention_mask": seen[:, None]}

    def unpack(self, cache: DynamicCache, output):
        """The language model's output, and its cache, without the text run."""
        output.last_hidden_state = output.last_hidden_state[:, : self.length]
        cache.crop(-self.columns.shape[1])
        return output
