r"""Attention for a processor's cache, and dropout that costs nothing. For training and inference on a CPU.

`model.set_attn_implementation("cache_sized")`. With hundreds of tokens and many narrow heads, as in the paper's
network, the attention weights of a batch fill hundreds of megabytes. Eager attention moves them through memory several
times; sdpa, which does not keep them, computes them twice. Here a few heads of one spectrum at a time are worked
through from beginning to end while they stay in the cache. The numbers are those of eager attention.

Two identities make it short. Weights are powers of two of scores that carry a factor :math:`1 / \ln 2`. And where
there is a learned key :math:`k_\star`, softmax does not change when :math:`q \cdot k_\star` is taken off all scores:
subtracted from all keys once, it leaves the learned key with a score of 0 and a weight of

.. math:: \frac{1}{1 + \sum_j 2^{s_j}}, \qquad \text{and the tokens with} \quad \frac{2^{s_i}}{1 + \sum_j 2^{s_j}}:

no column of its own, and no maximum to be found first (unless a sum grows beyond bounds).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

NAME = "cache_sized"
HEADS = 8
"""Worked through together: with 512 tokens their weights take 4 MB in bfloat16."""

LARGEST = 1e30
"""Of a sum of weights before it is normalised; beyond, their maximum is looked for after all."""


def dropped_places(n: int, p: float, device: torch.device) -> Tensor:
    """Which of n numbers are dropped, each with probability p.

    A random number for each would cost more than the matrix products. Instead -n ln(1 - p) places are drawn, with
    replacement: each is missed by all of them with probability (1 - 1/n)^(-n ln(1 - p)), which for large n is 1 - p.
    """
    if n < 4096:
        return (torch.rand(n, device=device) < p).nonzero().flatten()
    return torch.randint(n, (round(-n * math.log1p(-p)),), device=device)


class Dropout(nn.Dropout):
    """nn.Dropout by `dropped_places`."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.p == 0 or self.p == 1 or torch.compiler.is_compiling():
            return super().forward(input)
        places = dropped_places(input.numel(), self.p, input.device)
        return (input / (1 - self.p)).flatten().index_fill(0, places, 0).view_as(input)


def _parts(query: Tensor) -> Iterator[tuple[int, slice]]:
    """Spectrum by spectrum, a few heads at a time; query (batch, heads, ...)."""
    for row in range(query.shape[0]):
        for first in range(0, query.shape[1], HEADS):
            yield row, slice(first, first + HEADS)


def _weights(
    query: Tensor, key: Tensor, mask: Tensor | None, at_least: float | None = None
) -> tuple[Tensor, Tensor | float]:
    """2^score of each token, (heads, n_queries, n_keys), and of a score of 0.

    Args:
        at_least: All scores are lowered by the largest of a row, or by this if it is larger; None = they are not.
    """
    scores = torch.bmm(query, key.transpose(1, 2))
    if mask is not None:
        scores += mask.to(scores.dtype)
    if at_least is None:
        return torch.exp2(scores, out=scores), 1.0
    largest = scores.amax(-1, keepdim=True).clamp_min_(at_least)
    return torch.exp2(scores.sub_(largest), out=scores), torch.exp2(-largest.float())


class _CacheSizedAttention(torch.autograd.Function):
    """Attention and its derivative, part by part; all in powers of two (see the module)."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        learned_value: Tensor | None,
        mask: Tensor | None,
        dropout: float,
    ) -> Tensor:
        """query, key, value (batch, heads, length, d), contiguous; learned_value (batch, heads, 1, d) or None.

        The query carries the scaling and 1 / ln 2; the learned key is subtracted from `key`. mask is added to the
        scores, (batch, 1, n_queries or 1, n_keys).
        """
        attended, norm = torch.empty_like(query), query.new_empty((*query.shape[:3], 1), dtype=torch.float32)
        learned_weight = None if learned_value is None else torch.empty_like(norm)
        kept: list[Tensor] = []
        for row, heads in _parts(query):
            told = query[row, heads], key[row, heads], None if mask is None else mask[row]
            weights, of_learned = _weights(*told, -math.inf if learned_value is None else None)
            total = weights.sum(-1, keepdim=True).float()
            if learned_weight is not None:
                if not total.max() < LARGEST:
                    weights, of_learned = _weights(*told, 0.0)
                    total = weights.sum(-1, keepdim=True).float()
                total = total + of_learned
                learned_weight[row, heads] = of_learned / total
            norm[row, heads] = 1 / total
            kept.append(weights)
            if dropout:
                kept.append(dropped_places(weights.numel(), dropout, weights.device))
                weights = weights.clone()
                weights.view(-1).index_fill_(0, kept[-1], 0)
            torch.bmm(weights, value[row, heads], out=attended[row, heads])
        attended = attended * (norm / (1 - dropout))
        if learned_value is not None and learned_weight is not None:
            learned_weight = nn.functional.dropout(learned_weight, dropout, training=dropout > 0)
            attended = attended + learned_weight * learned_value
        attended = attended.to(query.dtype)
        ctx.dropout, ctx.learned_weight = dropout, learned_weight
        ctx.save_for_backward(query, key, value, attended, norm, *kept)
        return attended

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, attended, norm, *kept = ctx.saved_tensors
        dropout, learned_weight = ctx.dropout, ctx.learned_weight
        # d weight_i = weight_i (d value_i - sum_j weight_j d value_j), and the sum is the answer times its gradient.
        shared = (gradient.float() * attended.float()).sum(-1, keepdim=True) * norm * math.log(2)
        shared = shared.to(query.dtype)
        scaled = (gradient * (norm / (1 - dropout))).to(query.dtype)
        natural = value * math.log(2)
        d_query, d_key, d_value = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        saved = iter(kept)
        for part in _parts(query):
            weights = next(saved)
            d_weights = torch.bmm(scaled[part], natural[part].transpose(1, 2))
            if dropout:
                dropped = next(saved)
                d_weights.view(-1).index_fill_(0, dropped, 0)
            d_weights.sub_(shared[part]).mul_(weights)
            torch.bmm(d_weights, key[part], out=d_query[part])
            torch.bmm(d_weights.transpose(1, 2), query[part], out=d_key[part])
            if dropout:
                weights = weights.view(-1).index_fill(0, dropped, 0).view_as(weights)
            torch.bmm(weights.transpose(1, 2), scaled[part], out=d_value[part])
        d_learned = None
        if learned_weight is not None:
            d_learned = (learned_weight * gradient.float()).sum(-2, keepdim=True).to(query.dtype)
        return d_query, d_key, d_value, d_learned, None, None


def cache_sized_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """softmax(q k / sqrt(d) + mask) v; each (batch, heads, length, d). Attention weights are not returned.

    If the module's configuration has `learned_key_value`, the last key and value are the learned ones.

    Raises:
        ValueError: Attention weights were asked for.
    """
    if kwargs.get("output_attentions"):
        raise ValueError(
            f"attn_implementation {NAME!r} keeps no attention weights; for output_attentions, call "
            'model.set_attn_implementation("eager") first.'
        )
    learned_value = None
    if module.config.learned_key_value:  # type: ignore[union-attr]
        learned_value = value[:, :, -1:].contiguous()
        key, value = key[:, :, :-1] - key[:, :, -1:], value[:, :, :-1]
        attention_mask = None if attention_mask is None else attention_mask[..., :-1]
    query = query * (scaling / math.log(2))
    attended = _CacheSizedAttention.apply(
        query.contiguous(), key.contiguous(), value.contiguous(), learned_value, attention_mask, float(dropout)
    )
    return attended.transpose(1, 2), None


AttentionInterface.register(NAME, cache_sized_attention_forward)
AttentionMaskInterface.register(NAME, eager_mask)
