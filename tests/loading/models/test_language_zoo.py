"""The mini GPT-2 and ViT-Tiny: the networks they claim to be, told from their files, measured on text."""

from __future__ import annotations

import json
import math
import runpy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from spectrascope.cli import main
from spectrascope.errors import DataError, LoadError
from spectrascope.loading.data.open import load_dataset
from spectrascope.loading.models.open import load_model
from spectrascope.loading.models.recognise import recognise
from spectrascope.loading.zoo.mini_gpt2 import MiniGPT2ForSequenceClassification, MiniGPT2LMHeadModel
from spectrascope.loading.zoo.vit_tiny import VitTiny
from spectrascope.losses import CausalLM, CrossEntropy, usual_loss
from spectrascope.network.layers import WeightLayer, find_layers
from spectrascope.records.values import Task

LINE = "the quick brown fox jumps over the lazy dog, and then it does so once more\n"


def randomised(network: nn.Module) -> nn.Module:
    """Every parameter drawn anew, biases and gains too, so that none of them could be left out unnoticed."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(3)
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape) * (0.05 if parameter.dim() >= 2 else 0.5))
    return network.eval()


def ids(vocabulary: int, *shape: int) -> torch.Tensor:
    return torch.randint(vocabulary, shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text(LINE * 120)
    return path


# --- against other people's code for the same networks ---


def test_mini_gpt2_computes_what_gpt2_does() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=31, n_positions=12, n_embd=384, n_layer=6, n_head=6, activation_function="gelu",
        tie_word_embeddings=False, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    ours, theirs = randomised(MiniGPT2LMHeadModel(31, 12)), transformers.GPT2LMHeadModel(config).eval()
    words = {
        "tokens": "transformer.wte", "positions": "transformer.wpe", "blocks": "transformer.h", "norm1": "ln_1",
        "norm2": "ln_2", "up": "c_fc", "down": "c_proj", "norm": "transformer.ln_f",
    }  # fmt: skip
    renamed = {}
    for name, value in ours.state_dict().items():
        key = ".".join(words.get(part, part) for part in name.split("."))
        stored_the_other_way = ".attn.c_" in key or ".mlp.c_" in key
        renamed[key] = value.T if stored_the_other_way and value.dim() == 2 else value
    theirs.load_state_dict(renamed)
    tokens = ids(31, 3, 12)
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=1e-4, atol=1e-4)


def test_vit_tiny_computes_what_torchvisions_vit_does() -> None:
    from torchvision.models import VisionTransformer

    ours = randomised(VitTiny(7))
    theirs = VisionTransformer(32, 4, 12, 3, 192, 768, num_classes=7, norm_layer=nn.LayerNorm).eval()
    assert len(ours.state_dict()) == len(theirs.state_dict())
    by_shape_and_order = {
        "patches": "conv_proj", "class_token": "class_token", "position_embedding": "encoder.pos_embedding",
        "norm": "encoder.ln", "head": "heads.head",
    }  # fmt: skip
    inside = {"norm1": "ln_1", "attn": "self_attention", "norm2": "ln_2", "up": "0", "down": "3"}
    renamed = {}
    for name, value in ours.state_dict().items():
        first, *rest = name.split(".")
        if first == "blocks":
            place = ".".join(inside.get(part, part) for part in rest[1:])
            renamed[f"encoder.layers.encoder_layer_{rest[0]}.{place}"] = value
        else:
            renamed[".".join([by_shape_and_order[first], *rest])] = value
    theirs.load_state_dict(renamed)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-4)


# --- what they are ---


def test_the_papers_weights() -> None:
    shapes = {
        la.name: la.info.shape
        for la in find_layers(load_model("mini-gpt2@none", headers_only=True).model)
        if isinstance(la, WeightLayer)
    }
    assert len(shapes) == 6 * 6 + 1
    assert all(shapes[f"blocks.{b}.attn.c_attn.weight[{letter}]"] == (384, 384) for b in range(6) for letter in "qkv")
    assert shapes["blocks.5.attn.c_proj.weight"] == (384, 384)
    assert (shapes["blocks.5.mlp.up.weight"], shapes["blocks.5.mlp.down.weight"]) == ((1536, 384), (384, 1536))
    assert shapes["lm_head.weight"] == (256, 384)
    images = [la for la in find_layers(VitTiny()) if isinstance(la, WeightLayer)]
    assert len(images) == 1 + 12 * 6 + 1
    whole = {la.info.name: la.info.shape for la in find_layers(VitTiny(), split_fused=False)}
    assert whole["blocks.11.attn.in_proj_weight"] == (576, 192)
    assert (whole["patches.weight"], whole["blocks.11.mlp.up.weight"]) == ((192, 48), (768, 192))


def test_no_token_sees_those_after_it() -> None:
    network = randomised(MiniGPT2LMHeadModel(31, 12))
    tokens = ids(31, 1, 12)
    later = tokens.clone()
    later[0, 7:] = (later[0, 7:] + 1) % 31
    with torch.no_grad():
        before, after = network(tokens), network(later)
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7:], after[:, 7:])


def test_a_padded_text_has_the_class_of_the_text() -> None:
    network = randomised(MiniGPT2ForSequenceClassification(3, 31, 12))
    tokens = ids(31, 2, 12)
    mask = (torch.arange(12) < torch.tensor([[7], [12]])).long()
    with torch.no_grad():
        padded = network(tokens * mask, mask)
        torch.testing.assert_close(padded[:1], network(tokens[:1, :7]), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(padded[1:], network(tokens[1:]), rtol=1e-5, atol=1e-5)


def test_weights_to_begin_training_with() -> None:
    network = load_model("mini-gpt2@none").model
    spread = {name: float(p.detach().std()) for name, p in network.named_parameters() if p.dim() == 2}
    assert spread["blocks.2.mlp.up.weight"] == pytest.approx(0.02, rel=0.02)
    assert spread["blocks.2.mlp.down.weight"] == pytest.approx(0.02 / 12**0.5, rel=0.02)
    tokens = ids(256, 2, 64)
    with torch.no_grad():
        assert float(CausalLM()(network(tokens), tokens)) == pytest.approx(math.log(256), abs=0.2)


def test_task_text_and_loss() -> None:
    language = load_model("mini-gpt2@none")
    assert (language.info.task, language.num_classes, language.class_names) == (Task.CAUSAL_LM, None, None)
    assert language.text is not None
    assert (language.text.vocab_size, language.text.max_length) == (256, 256)
    assert usual_loss(language.model) == CausalLM()
    classes = load_model("mini-gpt2-classifier@none", num_classes=5)
    assert (classes.info.task, classes.num_classes) == (Task.SEQUENCE_CLASSIFICATION, 5)
    assert classes.text is not None
    assert usual_loss(classes.model) == CrossEntropy()
    assert load_model("vit-tiny@none").info.task is Task.IMAGE_CLASSIFICATION


def test_random_weights_by_the_plain_name_say_so() -> None:
    plain, asked = load_model("mini-gpt2", seed=4), load_model("mini-gpt2@none", seed=4)
    assert plain.info.weights == asked.info.weights == "random (seed 4)"
    assert plain.notes == ("mini-gpt2 has no weights of its own: these are random; pass a checkpoint for trained ones",)
    assert asked.notes == ()
    assert torch.equal(plain.model.lm_head.weight, asked.model.lm_head.weight)
    assert next(load_model("mini-gpt2", headers_only=True).model.parameters()).is_meta
    for name in ("vit-tiny", "mini-gpt2-classifier", "mini-gpt2@BEST"):
        with pytest.raises(LoadError, match="have no weights of their own"):
            load_model(name)


# --- from a file ---


@pytest.mark.parametrize("arch", [None, "mini-gpt2"])
def test_vocabulary_and_length_are_read_from_the_file(tmp_path: Path, arch: str | None) -> None:
    network = randomised(MiniGPT2LMHeadModel(65, 48))
    torch.save({"model": network.state_dict(), "steps": 7}, tmp_path / "net.pt")
    loaded = load_model(str(tmp_path / "net.pt"), arch=arch)
    assert (loaded.info.architecture, loaded.info.weights) == ("mini-gpt2", "checkpoint")
    assert loaded.text is not None
    assert (loaded.text.vocab_size, loaded.text.max_length) == (65, 48)
    tokens = ids(65, 2, 48)
    with torch.no_grad():
        assert torch.equal(loaded.model(tokens), network(tokens))


def test_a_classifiers_sizes_are_read_from_the_file(tmp_path: Path) -> None:
    network = randomised(MiniGPT2ForSequenceClassification(3, 70, 40))
    torch.save(network.state_dict(), tmp_path / "net.pt")
    loaded = load_model(str(tmp_path / "net.pt"))
    assert (loaded.info.architecture, loaded.num_classes) == ("mini-gpt2-classifier", 3)
    assert loaded.text is not None
    assert (loaded.text.vocab_size, loaded.text.max_length) == (70, 40)
    with torch.no_grad():
        assert torch.equal(loaded.model(ids(70, 2, 40)), network(ids(70, 2, 40)))


@pytest.mark.parametrize("shape", [(0, 384), (384,), (1 << 30, 384), (256, 384, 1)])
def test_a_table_of_positions_that_cannot_be_one(shape: tuple[int, ...]) -> None:
    state = dict(load_model("mini-gpt2@none", headers_only=True).model.state_dict())
    state["positions.weight"] = torch.empty(shape, device="meta")
    with pytest.raises(LoadError, match=r"nearest is mini-gpt2, .* of another shape \(positions\.weight"):
        recognise(state, timm=False)


# --- on text ---


def test_bytes_or_characters(corpus: Path, tmp_path: Path) -> None:
    bytes_ = load_dataset(f"text:{corpus}", load_model("mini-gpt2@none"), num_samples=4, seed=0)
    assert bytes_.info.input_shape == (128,)
    assert "bytes as tokens" in bytes_.info.preprocessing
    small = load_model("mini-gpt2@none", num_classes=len(set(LINE)))
    characters = load_dataset(f"text:{corpus}", small, num_samples=4, seed=0, block_size=16)
    assert "characters numbered in sorted order" in characters.info.preprocessing
    with pytest.raises(DataError, match="takes at most 256 tokens"):
        load_dataset(f"text:{corpus}", small, num_samples=4, seed=0, block_size=257)
    with pytest.raises(ValueError, match="13 tokens; this network takes at most 12"):
        MiniGPT2LMHeadModel(31, 12)(ids(31, 1, 13))


def test_probe_by_the_plain_name(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["probe", "mini-gpt2", "--dataset", f"text:{corpus}", "--num-samples", "4", "--block-size", "12"]
    assert main([*command, "--layers", "lm_head.weight", "--top-k", "4", "--json", "--device", "cpu"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["provenance"]["model"]["weights"] == "random (seed 0)"
    assert any("these are random" in note for note in report["provenance"]["notes"])
    assert report["provenance"]["loss_name"] == "causal-lm"


def test_the_training_script(corpus: Path, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A language model of a text that repeats itself, then two classes on its trunk, then both of them from files."""
    script = Path(__file__).parents[3] / "examples" / "train_mini_gpt2.py"
    language, classes = tmp_path / "net.pt", tmp_path / "classes.pt"

    def run(*options: str) -> None:
        monkeypatch.setattr(sys, "argv", [str(script), str(corpus), "--batch", "4", "--block", "32", *options])
        runpy.run_path(str(script), run_name="__main__")

    run("--out", str(language), "--steps", "12")
    run("--out", str(classes), "--steps", "3", "--classes", str(language))
    assert "held out: loss" in capsys.readouterr().out
    lm, cls = load_model(str(language)), load_model(str(classes))
    assert (lm.info.architecture, cls.info.architecture) == ("mini-gpt2", "mini-gpt2-classifier")
    saved = torch.load(language, weights_only=True)
    assert saved["steps"] == 12
    assert saved["held_out_loss"] < 4.5  # bytes at random: 5.5
    for name, value in lm.model.state_dict().items():  # the trunk was left as it is
        assert name == "lm_head.weight" or torch.equal(value, cls.model.state_dict()[name])
    data = load_dataset(f"folder:{tmp_path}/classes_texts", cls, num_samples=999, seed=0)
    assert (data.info.n_classes, data.info.input_shape) == (2, (32,))
    (inputs, labels) = data.source.fetch(0, data.source.n)
    with torch.no_grad():
        loss = float(CrossEntropy()(cls.model(**inputs), labels))
    assert loss == pytest.approx(torch.load(classes, weights_only=True)["held_out_loss"], rel=1e-4)
