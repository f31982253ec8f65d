"""Hugging Face families from tiny configs, each with a task it is used for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from spectrascope.losses import CrossEntropy
from spectrascope.workload import Inputs
from tests.support.family import (
    CAUSAL,
    CLASSES,
    MASKED,
    VOCABULARY,
    Family,
    causal,
    classes,
    images,
    masked,
    padded_causal,
    padded_classes,
    tokens,
)

_TOKENS: dict[str, Any] = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_WIDE: dict[str, Any] = {
    "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12,
    "max_position_embeddings": 16, **_TOKENS,
}  # fmt: skip
_GROUPED = {**_WIDE, "num_key_value_heads": 1}
_GPT: dict[str, Any] = {"n_positions": 16, "n_embd": 8, "n_layer": 2, "n_head": 2, **_TOKENS}


def _network(kind: str, name: str, /, **config: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import transformers

        return getattr(transformers, kind + name)(getattr(transformers, f"{kind}Config")(**config))

    return build


def _causal(kind: str, name: str = "ForCausalLM", /, batch: Callable = causal, **config: Any) -> Family:
    fallback = config.pop("fallback", None)
    kinks = config.pop("kinks", False)
    return Family("huggingface", _network(kind, name, **config), batch, CAUSAL, fallback=fallback, kinks=kinks)


def _classifier(kind: str, /, **config: Any) -> Family:
    network = _network(kind, "ForSequenceClassification", num_labels=CLASSES, **config)
    return Family("huggingface", network, padded_classes, CrossEntropy())


def _masked(kind: str, /, **config: Any) -> Family:
    return Family("huggingface", _network(kind, "ForMaskedLM", **config), masked, MASKED)


def _images(kind: str, size: int, /, **config: Any) -> Family:
    network = _network(kind, "ForImageClassification", num_labels=CLASSES, **config)
    return Family("huggingface", network, images(size), CrossEntropy())


def _ended() -> tuple[Inputs, Tensor]:
    """Tokens that end in one end-of-text token (2), where an encoder-decoder classifier reads its state."""
    ids = tokens()
    ids[:, -1] = 2
    return ids, classes()


_SWIN: dict[str, Any] = {
    "image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [2, 1], "num_heads": [2, 2], "window_size": 4,
    "mlp_ratio": 2.0,
}  # fmt: skip
_DISTIL: dict[str, Any] = {"dim": 8, "n_layers": 2, "n_heads": 2, "hidden_dim": 12, "max_position_embeddings": 16}
_PHI = {**_WIDE, "partial_rotary_factor": 0.5}
_GEMMA = {**_GROUPED, "head_dim": 4, "query_pre_attn_scalar": 4, "sliding_window": 4}
_MIXTRAL = {**_GROUPED, "num_local_experts": 3, "num_experts_per_tok": 2}
_MISTRAL = {**_GROUPED, "sliding_window": 3}
_MAMBA: dict[str, Any] = {
    "hidden_size": 8, "state_size": 4, "num_hidden_layers": 2, "expand": 2, "conv_kernel": 3, "time_step_rank": 2,
    **_TOKENS,
}  # fmt: skip

HUGGINGFACE: dict[str, Family] = {
    "gpt2": _causal("GPT2", "LMHeadModel", **_GPT),
    "gpt2-eager": _causal("GPT2", "LMHeadModel", attn_implementation="eager", **_GPT),
    "gpt2-padded": _causal("GPT2", "LMHeadModel", batch=padded_causal, **_GPT),
    "gpt2-classifier": _classifier("GPT2", **_GPT),
    "llama": _causal("Llama", **_GROUPED),
    "llama-eager": _causal("Llama", attn_implementation="eager", **_GROUPED),
    "llama-classifier": _classifier("Llama", **_GROUPED),
    "mistral": _causal("Mistral", **_MISTRAL),
    "qwen2": _causal("Qwen2", **_GROUPED),
    "qwen3": _causal("Qwen3", head_dim=4, **_GROUPED),
    "gemma2": _causal("Gemma2", **_GEMMA),
    "phi": _causal("Phi", **_PHI),
    "opt": _causal("OPT", hidden_size=8, num_hidden_layers=2, num_attention_heads=2, ffn_dim=12, kinks=True,
                   max_position_embeddings=16, word_embed_proj_dim=8, **_TOKENS),
    "gpt-neox": _causal("GPTNeoX", **_WIDE),
    "gptj": _causal("GPTJ", rotary_dim=2, **_GPT),
    "bloom": _causal("Bloom", hidden_size=8, n_layer=2, n_head=2, fallback="python autograd.Function", **_TOKENS),
    # The grouped product that experts use by default exists for float32 and narrower only.
    "mixtral": _causal("Mixtral", experts_implementation="eager", **_MIXTRAL),
    "mixtral-batched": _causal("Mixtral", experts_implementation="batched_mm", **_MIXTRAL),
    "mamba": _causal("Mamba", **_MAMBA),
    "bert-masked": _masked("Bert", **_WIDE),
    "bert-classifier": _classifier("Bert", **_WIDE),
    "roberta-masked": _masked("Roberta", **_WIDE),
    "roberta-classifier": _classifier("Roberta", **_WIDE),
    "distilbert-masked": _masked("DistilBert", **_DISTIL, **_TOKENS),
    "distilbert-classifier": _classifier("DistilBert", **_DISTIL, **_TOKENS),
    "t5-classifier": Family(
        "huggingface",
        _network("T5", "ForSequenceClassification", d_model=8, d_kv=4, d_ff=12, num_layers=2, num_heads=2,
                 num_labels=CLASSES, feed_forward_proj="gated-gelu", decoder_start_token_id=0, **_TOKENS),
        _ended,
    ),
    "hf-vit": _images("ViT", 16, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12,
                      image_size=16, patch_size=8),
    "hf-swin": _images("Swin", 16, **_SWIN),
    "hf-convnext": _images("ConvNext", 32, hidden_sizes=[4, 6, 8, 10], depths=[1, 1, 2, 1], image_size=32),
}  # fmt: skip
