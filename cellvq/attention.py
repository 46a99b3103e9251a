"""Attention over the tokens of a cell, by whatever is fastest on the device at hand.

On a GPU that is torch's own. On a CPU torch's kernel computes in float32 whatever it is given, so
long cells in bfloat16 pass through matrix products here, in blocks that stay in the cache.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

SCORES = 6_000_000
"""Scores (cells x heads x queries x keys) of a block, which the cache of a processor holds."""
LONG = 128
"""Tokens from which blocks are faster than torch's kernel."""


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Let every token of a cell look at every other: softmax(q k' / sqrt(width)) v.

    Args:
        queries: [cells, heads, tokens, head width].
        keys: [cells, heads, tokens, head width].
        values: [cells, heads, tokens, head width].
        mask: what to add before the softmax, -inf at padding, [cells, 1, 1, tokens]; or None.

    Example:
        >>> q = torch.zeros(1, 1, 2, 4)  # no query prefers a key: the mean of the values
        >>> attend(q, q, torch.tensor([[[[1.0], [3.0]]]]).expand(1, 1, 2, 4), None)[0, 0, 0]
        tensor([2., 2., 2., 2.])
    """
    if queries.device.type != "cpu":
        mask = None if mask is None else mask.to(queries.dtype)
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
    with torch.autocast("cpu", enabled=False):
        rough = queries.dtype == torch.bfloat16
        if rough and queries.shape[2] >= LONG and not torch.is_grad_enabled():
            return attend_in_blocks(queries, keys, values, mask)
        parts = (part.float() for part in (queries, keys, values))
        return F.scaled_dot_product_attention(*parts, attn_mask=mask)


def attend_in_blocks(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Do as `attend`, a block of queries at a time, with products in the precision given.

    Args:
        queries: [cells, heads, tokens, head width].
        keys: [cells, heads, tokens, head width].
        values: [cells, heads, tokens, head width].
        mask: what to add before the softmax, -inf at padding, [cells, 1, 1, tokens]; or None.
    """
    cells, heads, tokens, width = queries.shape
    queries, values = (queries * width**-0.5).contiguous(), values.contiguous()
    keys = keys.contiguous().mT
    rows = max(SCORES // (cells * heads * tokens), 1)
    attended = torch.empty_like(values)
    for start in range(0, tokens, rows):
        scores = queries[:, :, start : start + rows] @ keys
        if mask is not None:
            scores += mask.to(scores.dtype)
        attended[:, :, start : start + rows] = scores.softmax(-1) @ values
    return attended
