"""Which rows of a fused weight are q, k and v, judged by what the network computes and not by how it is written.

Attention looks at q·k only: scaling the rows of q and shrinking those of k by the same factor changes nothing,
while scaling q alone does. And without v an attention block adds nothing, wherever q and k point.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from spectrascope.network.fused import fused_blocks
from spectrascope.network.layers import WeightLayer, find_layers

SIZES = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 16, "vocab_size": 31, "pad_token_id": 0}


def _language_model(kind: str, **config) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    made = transformers.AutoConfig.for_model(kind, **config)
    return transformers.AutoModelForCausalLM.from_config(made, attn_implementation="eager")


def _gpt2(**_) -> nn.Module:
    return _language_model("gpt2", n_embd=16, n_layer=2, n_head=4, vocab_size=31, n_positions=16)


def _falcon(**rest) -> nn.Module:
    return _language_model("falcon", **SIZES, alibi=False, **rest)


LANGUAGE = {
    "gpt2": _gpt2,
    "openai-gpt": lambda: _language_model("openai-gpt", n_embd=16, n_layer=2, n_head=4, vocab_size=31, n_positions=16),
    "gpt_bigcode": lambda: _language_model(
        "gpt_bigcode", n_embd=16, n_layer=2, n_head=4, vocab_size=31, n_positions=16, multi_query=True
    ),
    "gpt_bigcode_heads": lambda: _language_model(
        "gpt_bigcode", n_embd=16, n_layer=2, n_head=4, vocab_size=31, n_positions=16, multi_query=False
    ),
    "gpt_neox": lambda: _language_model("gpt_neox", **SIZES, intermediate_size=32),
    "bloom": lambda: _language_model("bloom", n_layer=2, n_head=4, hidden_size=16, vocab_size=31),
    "falcon_old": lambda: _falcon(multi_query=False, new_decoder_architecture=False),
    "falcon_multi_query": lambda: _falcon(multi_query=True, new_decoder_architecture=False),
    "falcon_new": lambda: _falcon(new_decoder_architecture=True, num_kv_heads=2),
    "mpt": lambda: _language_model("mpt", d_model=16, n_heads=4, n_layers=2, vocab_size=31, max_seq_len=16),
    "phi3": lambda: _language_model("phi3", **SIZES, num_key_value_heads=2, intermediate_size=32),
    "codegen": lambda: _language_model(
        "codegen", n_embd=16, n_layer=2, n_head=4, vocab_size=31, n_positions=16, rotary_dim=4
    ),
}  # fmt: skip


def _image_model(name: str) -> nn.Module:
    if name.startswith("torchvision."):
        torchvision = pytest.importorskip("torchvision")
        return torchvision.models.get_model(name.partition(".")[2])
    timm = pytest.importorskip("timm")
    return timm.create_model(name.partition(".")[2])


IMAGES = {
    "torchvision.maxvit_t": 224,
    "timm.vit_tiny_patch16_224": 224,
    "timm.swin_tiny_patch4_window7_224": 224,
    "timm.xcit_nano_12_p16_224": 224,
    "timm.twins_svt_small": 224,
}


def _fused(model: nn.Module) -> dict[str, dict[str, WeightLayer]]:
    found: dict[str, dict[str, WeightLayer]] = {}
    for layer in find_layers(model):
        name, bracket, rest = layer.info.name.partition("[")
        if isinstance(layer, WeightLayer) and bracket and rest.rstrip("]") in ("q", "k", "v"):
            found.setdefault(name, {})[rest.rstrip("]")] = layer
    return found


def _scale(model: nn.Module, blocks: dict[str, dict[str, WeightLayer]], **factors: float) -> None:
    """Scale whole blocks, with the entries of the bias that belong to them."""
    with torch.no_grad():
        for name, layers in blocks.items():
            bias = dict(model.named_parameters()).get(name.removesuffix("weight") + "bias")
            for letter, factor in factors.items():
                layer = layers[letter]
                layer.parameter.add_(layer.tensor(layer.matrix(layer.parameter) * (factor - 1)))
                for run in layer.rows or ():
                    if bias is not None:
                        bias[run] *= factor


def _randomise(model: nn.Module) -> None:
    """Far from initialisation, so that the softmax is neither flat nor saturated."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() >= 2:
                p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype) * p[0].numel() ** -0.5)


def _require_attention_symmetry(model: nn.Module, run, exact: float) -> None:
    model = model.double().eval()
    _randomise(model)
    blocks = _fused(model)
    assert blocks
    for layers in blocks.values():
        whole = next(iter(layers.values())).parameter.numel()
        assert sum(la.info.shape[0] * la.info.shape[1] for la in layers.values()) == whole
    with torch.no_grad():
        before = run(model)
        _scale(model, blocks, q=1.7, k=1 / 1.7)
        assert float((run(model) - before).abs().max()) <= exact * float(before.abs().max())
        _scale(model, blocks, k=1.7)
        assert float((run(model) - before).abs().max()) > 1e-4 * float(before.abs().max())
        _scale(model, blocks, q=1 / 1.7, v=1.7)
        assert float((run(model) - before).abs().max()) > 1e-4 * float(before.abs().max())
        _scale(model, blocks, v=0.0)
        silent = run(model)
        _scale(model, blocks, q=3.0, k=-0.5)
        assert float((run(model) - silent).abs().max()) <= exact * float(silent.abs().max())


@pytest.mark.parametrize("name", LANGUAGE)
def test_language_models(name):
    # Not 1e-9: CodeGen attends in float32, whatever the model's precision.
    tokens = torch.randint(1, 31, (2, 7), generator=torch.Generator().manual_seed(1))
    _require_attention_symmetry(
        LANGUAGE[name](), lambda model: model(tokens).logits, 1e-6
    )  # CodeGen attends in float32


@pytest.mark.parametrize("name", IMAGES)
def test_image_models(name):
    images = torch.randn(1, 3, IMAGES[name], IMAGES[name], generator=torch.Generator().manual_seed(1)).double()
    model = _image_model(name)
    if "xcit" in name:  # q and k are normalised: only v shows
        blocks = _fused(model)
        assert blocks
        assert all(set(layers) == {"q", "k", "v"} for layers in blocks.values())
        return
    _require_attention_symmetry(model, lambda m: m(images), 1e-9)


def test_cross_attention_of_gpt2_fuses_keys_and_values_only():
    model = _language_model(
        "gpt2", n_embd=16, n_layer=1, n_head=4, vocab_size=31, n_positions=16, add_cross_attention=True
    )
    names = {layer.info.name for layer in find_layers(model) if "c_attn" in layer.info.name}
    assert names == {
        *(f"transformer.h.0.attn.c_attn.weight[{letter}]" for letter in "qkv"),
        *(f"transformer.h.0.crossattention.c_attn.weight[{letter}]" for letter in "kv"),
    }


class Odd(nn.Module):
    """An attention class nobody has listed."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(4, 12)


class CausalSelfAttention(nn.Module):
    """Named as in minGPT, nanoGPT and llm.c."""

    def __init__(self) -> None:
        super().__init__()
        self.c_attn = nn.Linear(4, 12)


def test_an_unknown_layout_is_left_whole():
    assert [layer.info.name for layer in find_layers(Odd())] == ["qkv.weight"]
    assert fused_blocks(Odd(), "qkv", 12, 4) is None


def test_split_on_request_only():
    net = nn.Sequential(CausalSelfAttention())
    assert [layer.info.name for layer in find_layers(net)] == [f"0.c_attn.weight[{letter}]" for letter in "qkv"]
    assert [layer.info.name for layer in find_layers(net, split_fused=False)] == ["0.c_attn.weight"]
    attention = nn.MultiheadAttention(4, 2)
    whole = find_layers(attention, split_fused=False)
    assert next((layer.info.name, layer.info.shape) for layer in whole) == ("in_proj_weight", (12, 4))


def test_blocks_that_do_not_cover_the_weight_are_refused():
    assert fused_blocks(CausalSelfAttention(), "c_attn", 13, 4) is None
