"""A small GPT-2 for bytes or characters: six pre-norm blocks of width 384, as a language model or with a class head.

Parameter names are those of the parts (``blocks.0.attn.c_attn.weight``). The head is not tied to the token table, so
that each is a weight of its own, and q, k and v come from one fused linear layer, ``c_attn``, as in GPT-2.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectrascope.loading.zoo.feed_forward import FeedForward

__all__ = ["MiniGPT2ForSequenceClassification", "MiniGPT2LMHeadModel", "classifier_sizes", "context_size"]

_WIDTH, _HEADS, _BLOCKS = 384, 6, 6
_LONGEST = 1 << 20  # above, a damaged file, which is not worth building a network for


class CausalSelfAttention(nn.Module):
    """Attention of each position to itself and those before it."""

    def __init__(self) -> None:
        super().__init__()
        self.c_attn = nn.Linear(_WIDTH, 3 * _WIDTH)
        self.c_proj = nn.Linear(_WIDTH, _WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, t, width) to the same."""
        q, k, v = (part.unflatten(2, (_HEADS, -1)).transpose(1, 2) for part in self.c_attn(x).chunk(3, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        mixed: Tensor = self.c_proj(y.transpose(1, 2).flatten(2))
        return mixed


class _DecoderBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(_WIDTH)
        self.attn = CausalSelfAttention()
        self.norm2 = nn.LayerNorm(_WIDTH)
        self.mlp = FeedForward(_WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, t, width) to the same."""
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class _Trunk(nn.Module):
    """Everything below the head: tokens (b, t) to states (b, t, width)."""

    def __init__(self, vocabulary: int, context: int) -> None:
        super().__init__()
        self.vocabulary, self.context = vocabulary, context
        self.tokens = nn.Embedding(vocabulary, _WIDTH)
        self.positions = nn.Embedding(context, _WIDTH)
        self.blocks = nn.ModuleList(_DecoderBlock() for _ in range(_BLOCKS))
        self.norm = nn.LayerNorm(_WIDTH)

    def _states(self, input_ids: Tensor) -> Tensor:
        length = input_ids.shape[1]
        if length > self.context:
            raise ValueError(f"{length} tokens; this network takes at most {self.context}")
        x = self.tokens(input_ids) + self.positions(torch.arange(length, device=input_ids.device))
        for block in self.blocks:
            x = block(x)
        states: Tensor = self.norm(x)
        return states

    def _initialise(self) -> None:
        """Normal weights as in GPT-2; what is added to the residual stream is smaller, by the number of additions."""
        for name, parameter in self.named_parameters():
            if parameter.dim() >= 2:
                last = name.endswith(("c_proj.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * _BLOCKS) ** 0.5 if last else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)


# Named as in Hugging Face's library, so that the task, and with it the usual loss, is read off the name.
class MiniGPT2LMHeadModel(_Trunk):
    """The language model: tokens (b, t) to scores (b, t, vocabulary) of the token after each."""

    def __init__(self, vocabulary: int = 256, context: int = 256) -> None:
        super().__init__(vocabulary, context)
        self.lm_head = nn.Linear(_WIDTH, vocabulary, bias=False)
        self._initialise()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Map tokens (b, t) to scores (b, t, vocabulary); padding on the right, which no token sees, needs no mask."""
        scores: Tensor = self.lm_head(self._states(input_ids))
        return scores


class MiniGPT2ForSequenceClassification(_Trunk):
    """The same trunk with a class head on the state of the last token."""

    def __init__(self, num_classes: int, vocabulary: int = 256, context: int = 256) -> None:
        super().__init__(vocabulary, context)
        self.score = nn.Linear(_WIDTH, num_classes, bias=False)
        self._initialise()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Map tokens (b, t), padded on the right where the mask is 0, to scores (b, num_classes)."""
        states = self._states(input_ids)
        if attention_mask is None:
            last = states[:, -1]
        else:
            at = attention_mask.sum(1) - 1
            last = states[torch.arange(len(states), device=states.device), at]
        scores: Tensor = self.score(last)
        return scores


def context_size(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """The longest text that a file with these shapes is for, in tokens; nothing where it does not say.

    >>> context_size({"positions.weight": (64, 384)})
    (64,)
    """
    shape = shapes.get("positions.weight", ())
    return shape[:1] if len(shape) == 2 and 0 < shape[0] <= _LONGEST else ()


def classifier_sizes(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """Vocabulary and longest text that a file with these shapes is for; nothing where it does not say.

    >>> classifier_sizes({"tokens.weight": (65, 384), "positions.weight": (64, 384)})
    (65, 64)
    """
    table, context = shapes.get("tokens.weight", ()), context_size(shapes)
    return (table[0], *context) if len(table) == 2 and 0 < table[0] <= _LONGEST and context else ()
