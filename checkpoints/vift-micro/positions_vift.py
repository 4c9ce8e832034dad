"""Which tokens of padded prompts (B, S) are text, and where fusion writes them; N text tokens, row after row."""

from collections.abc import Sequence

import torch


def is_one_of(input_ids, token_ids: Sequence[int]) -> torch.Tensor:
    return torch.isin(input_ids, torch.tensor(list(token_ids), device=input_ids.device))


def text_positions(input_ids, attention_mask, image_token_ids: Sequence[int], wrapper_ids: Sequence[int] = ()):
    """(rows, columns), each (N,): the text tokens of the prompts (B, S) that hold an image."""
    if attention_mask.ndim != 2:
        raise ValueError(f"attention_mask of shape {tuple(attention_mask.shape)} cannot be fused: pass one of (B, S)")
    attended = attention_mask.bool()
    has_image = (is_one_of(input_ids, image_token_ids) & attended).any(dim=1, keepdim=True)
    dropped = is_one_of(input_ids, [*image_token_ids, *wrapper_ids])
    return (attended & ~dropped & has_image).nonzero(as_tuple=True)


def position_in_row(rows: torch.Tensor) -> torch.Tensor:
    """0, 1, 2 ... within each run of equal values of the sorted `rows`, (N,) -> (N,)."""
    counts = torch.bincount(rows)
    return torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]


def span_columns(span: str, input_ids, attention_mask, image_token_ids: Sequence[int], rows, columns) -> torch.Tensor:
    """Where each text token is written under `span`, (N,); -1 where it is not."""
    if span == "all":
        return columns
    attended = attention_mask.bool()
    if span == "after_image":
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        last_image = torch.where(is_one_of(input_ids, image_token_ids) & attended, positions, -1).amax(dim=1)
        return torch.where(columns > last_image[rows], columns, -1)
    num_text = torch.bincount(rows, minlength=len(input_ids))
    attended_first = (~attended).int().argsort(dim=1, stable=True)
    return attended_first[rows, (attended.sum(dim=1) - num_text)[rows] + position_in_row(rows)]
