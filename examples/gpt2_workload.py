"""A GPT-2 of any size with random weights and tokens, as a factory: network, loss and data at once.

spectrascope bench examples/gpt2_workload.py:base --layers '*.h.[05].*.weight*' --rounds 2    # 12 layers, width 768
spectrascope bench examples/gpt2_workload.py:short --rounds 1    # all its weights; a quarter of an hour on one thread
spectrascope probe examples/gpt2_workload.py:small
"""

from __future__ import annotations

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from spectrascope.losses import CausalLM
from spectrascope.workload import TensorSource, Workload


def gpt2(layers: int, width: int, heads: int, vocabulary: int, sequences: int, length: int) -> Workload:
    """Build the network and a batch of random tokens; the same every time."""
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=layers, n_embd=width, n_head=heads, vocab_size=vocabulary, n_positions=length,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    tokens = torch.randint(vocabulary, (sequences, length))
    model = GPT2LMHeadModel(config).eval()
    return Workload(model, TensorSource(tokens, tokens), CausalLM(), torch.device("cpu"), torch.float32)


def base() -> Workload:
    """GPT-2 as published, 124 million parameters; two sequences of 128 tokens."""
    return gpt2(12, 768, 12, 50_257, 2, 128)


def short() -> Workload:
    """The same with one sequence of 128 tokens."""
    return gpt2(12, 768, 12, 50_257, 1, 128)


def small() -> Workload:
    """Three layers of width 96; sixteen sequences of 48 tokens."""
    return gpt2(3, 96, 4, 1000, 16, 48)


def small_128() -> Workload:
    """The same three layers; sixteen sequences of 128 tokens."""
    return gpt2(3, 96, 4, 1000, 16, 128)
