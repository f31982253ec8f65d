"""Text for language models and classifiers: tokens, blocks, masks, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from spectrascope.loading.loaded import LoadedModel
from spectrascope.losses import IGNORED, make_loss
from spectrascope.records.values import LossName, Missing, Task
from spectrascope.workload import Workload
from tests.support import hf_networks
from tests.support.data_networks import images, load, reader, refusal


def letters(text: str) -> list[int]:
    return [ord(c) % 256 for c in text]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.txt"
    path.write_bytes(bytes(np.random.default_rng(0).integers(97, 123, 1000, dtype=np.uint8)))
    return path


def all_tokens(loaded: LoadedModel, spec: str, n: int = 999, **options) -> tuple[torch.Tensor, torch.Tensor]:
    data = load(spec, loaded, n, **options)
    inputs, targets = data.source.fetch(0, data.source.n)
    assert isinstance(inputs, torch.Tensor)
    return inputs, targets


def test_blocks_are_contiguous_without_overlap_and_fixed(file: Path) -> None:
    content = file.read_bytes()
    inputs, targets = all_tokens(reader(max_length=None), f"text:{file}", block_size=30)
    assert inputs.shape == (33, 30)
    assert (inputs.dtype, targets.dtype) == (torch.int64, torch.int64)
    assert torch.equal(inputs, targets)  # the loss shifts them
    starts = [content.index(bytes(row)) for row in inputs.tolist()]
    assert sorted(starts) == list(range(0, 990, 30))
    assert starts != sorted(starts)
    small, _ = all_tokens(reader(max_length=None), f"text:{file}", 7, block_size=30)
    assert torch.equal(small, inputs[:7])  # a smaller batch begins a larger one
    other, _ = all_tokens(reader(max_length=None), f"text:{file}", 7, seed=1, block_size=30)
    assert not torch.equal(small, other)


def test_what_the_report_says(file: Path) -> None:
    info = load(f"text:{file}", reader(), 5).info
    assert (info.n, info.n_available, info.input_shape) == (5, 1000 // 64, (64,))
    assert isinstance(info.n_classes, Missing)
    assert info.id == f"text:{file}"
    assert info.digest == load(f"text:{file}", reader(), 5).source.digest()


def test_usual_block_length(file: Path) -> None:
    assert load(f"text:{file}", reader(max_length=None), 1).info.input_shape == (128,)
    assert load(f"text:{file}", reader(max_length=2048), 1).info.input_shape == (128,)
    assert load(f"text:{file}", reader(max_length=20), 1).info.input_shape == (20,)


def test_the_networks_tokenizer_comes_first(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\ufeffab" * 50, encoding="utf-8")
    seen = []

    def encode(text: str) -> list[int]:
        seen.append(text)
        return [7] * 40

    data = load(f"text:{path}", reader(vocab_size=8, encode=encode), block_size=10)
    assert seen == [("\ufeffab" * 50)[1:]]  # the mark at the start of the file is no text
    assert (data.info.n, data.info.preprocessing.split(";")[0]) == (4, "tokens of none in net")


def test_bytes_where_there_is_no_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(range(256)))
    data = load(f"text:{path}", reader(vocab_size=256), block_size=64)
    assert sorted(data.source.fetch(0, 4)[0].flatten().tolist()) == list(range(256))
    assert "bytes as tokens 0 … 255, a guess" in data.info.preprocessing


def test_characters_where_the_vocabulary_is_small(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("zaéb\n" * 20, encoding="utf-8")
    inputs, _ = all_tokens(reader(vocab_size=5), f"text:{path}", block_size=5)
    assert inputs.tolist() == [[3, 1, 4, 2, 0]] * 20
    info = load(f"text:{path}", reader(vocab_size=5), block_size=5).info
    assert "the text's 5 characters numbered in sorted order, a guess" in info.preprocessing
    refusal("5 different characters, but net has a vocabulary of 4", f"text:{path}", reader(vocab_size=4))
    refusal("does not say how large its vocabulary is", f"text:{path}", reader(vocab_size=0))


def test_refusals(tmp_path: Path, file: Path) -> None:
    refusal("no such file; expected a plain text file", f"text:{tmp_path}/none.txt", reader())
    refusal("no such file", f"text:{tmp_path}", reader())
    refusal("1000 tokens are less than one block of 1001", f"text:{file}", reader(max_length=None), block_size=1001)
    refusal("net takes at most 64 tokens", f"text:{file}", reader(), block_size=65)
    refusal("expected at least 2 tokens", f"text:{file}", reader(), block_size=1)
    refusal(
        "token 122 does not fit net with its vocabulary of 100", f"text:{file}", reader(vocab_size=100, encode=letters)
    )
    refusal("is text, but net reads images", f"text:{file}", images())
    refusal("net classifies texts; expected folder:PATH", f"text:{file}", reader(Task.SEQUENCE_CLASSIFICATION))
    refusal("which loss mse does not take", f"text:{file}", reader(), loss=LossName.MSE)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 " * 100)
    refusal(r"not UTF-8 text \(byte 3 is 0xe9\)", f"text:{tmp_path}/latin.txt", reader(encode=letters))
    (tmp_path / "empty.txt").write_bytes(b"")
    refusal("0 tokens are less than one block", f"text:{tmp_path}/empty.txt", reader())

    def broken(text: str) -> list[int]:
        raise RuntimeError("no\nluck")

    refusal("the tokenizer none in net failed on the text", f"text:{file}", reader(encode=broken))


@pytest.mark.parametrize("spec", ["digits", "cifar10", "imagenet", "tiny-imagenet:x"])
def test_image_sets_for_a_network_that_reads_tokens(spec: str) -> None:
    refusal("has images, but net reads tokens; expected text:FILE", spec, reader())
    refusal("expected folder:PATH with .txt files", spec, reader(Task.SEQUENCE_CLASSIFICATION, num_classes=2))


def test_only_the_beginning_of_a_very_long_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from spectrascope.loading.data import text as room

    file.write_text("é" * 500, encoding="utf-8")
    monkeypatch.setattr(room, "MAX_BYTES", 101)
    data = load(f"text:{file}", reader(encode=letters), block_size=10)
    assert data.info.n_available == 5  # 50 whole characters
    assert data.notes[0].startswith("only the first")


# --- masked language models ---


def test_masked_positions_are_fixed_and_hidden(file: Path) -> None:
    net = reader(Task.MASKED_LM, mask_id=299)
    inputs, targets = all_tokens(net, f"text:{file}", block_size=40)
    plain, _ = all_tokens(reader(), f"text:{file}", block_size=40)
    hidden = targets != IGNORED
    assert hidden.sum(1).tolist() == [6] * 25  # round(0.15 · 40)
    assert torch.equal(targets[hidden], plain[hidden])
    assert bool((inputs[hidden] == 299).all())
    assert torch.equal(inputs[~hidden], plain[~hidden])
    assert len({tuple(row.nonzero().flatten().tolist()) for row in hidden}) > 20
    small = load(f"text:{file}", net, 9, block_size=40).source
    assert torch.equal(small.fetch(3, 9)[0], inputs[3:9])
    assert torch.equal(small.fetch(3, 9)[1], targets[3:9])
    _, targets = all_tokens(net, f"text:{file}", block_size=3)
    assert bool(((targets != IGNORED).sum(1) == 1).all())  # at least one


def test_without_a_mask_token(file: Path) -> None:
    refusal("names no mask token", f"text:{file}", reader(Task.MASKED_LM))
    refusal("names no mask token within its vocabulary", f"text:{file}", reader(Task.MASKED_LM, mask_id=300))


# --- classifiers ---


def write_texts(root: Path) -> Path:
    for name, texts in {"good": ["ab", "abcdefgh"], "bad": ["x", "xyz"]}.items():
        (root / name).mkdir()
        for i, text in enumerate(texts):
            (root / name / f"{i}.txt").write_text(text)
    return root


def classifier(**fields) -> LoadedModel:
    fields = {"encode": letters, "num_classes": 2, "class_names": ("good", "bad"), "pad_id": 1, **fields}
    return reader(Task.SEQUENCE_CLASSIFICATION, **fields)


def test_text_folders_are_padded_and_masked(tmp_path: Path) -> None:
    data = load(f"folder:{write_texts(tmp_path)}", classifier(), block_size=4)
    inputs, targets = data.source.fetch(0, 4)
    assert isinstance(inputs, dict)
    texts = {
        "".join(chr(c) for c, seen in zip(row, mask, strict=True) if seen): label
        for row, mask, label in zip(
            inputs["input_ids"].tolist(), inputs["attention_mask"].tolist(), targets.tolist(), strict=True
        )
    }
    assert texts == {"ab": 0, "abcd": 0, "x": 1, "xyz": 1}
    assert bool((inputs["input_ids"][inputs["attention_mask"] == 0] == 1).all())
    assert (data.info.input_shape, data.info.n_classes) == ((4,), 2)
    assert data.info.preprocessing == "tokens of none in net; cut or padded to 4 tokens, no special tokens added"
    assert "matched to the network's 2 class names" in data.info.label_order


def test_text_folders_refused(tmp_path: Path) -> None:
    root = write_texts(tmp_path)
    refusal("names no padding token", f"folder:{root}", classifier(pad_id=None))
    refusal("too small for bytes", f"folder:{root}", classifier(encode=None, vocab_size=100))
    refusal("is a language model; expected text:FILE", f"folder:{root}", reader())
    refusal("no images in its 2 sub-folders", f"folder:{root}", images(2))
    for path in root.rglob("*.txt"):
        path.unlink()
    refusal("no text files in its 2 sub-folders", f"folder:{root}", classifier())


# --- noise ---


def test_synthetic_tokens() -> None:
    data = load("synthetic", reader(vocab_size=40), 30, block_size=9)
    inputs, targets = data.source.fetch(0, 30)
    assert inputs.shape == (30, 9)
    assert torch.equal(inputs, targets)
    assert (int(inputs.min()), int(inputs.max())) == (0, 39)
    assert torch.equal(data.source.fetch(4, 7)[0], inputs[4:7])
    assert data.info.synthetic is True
    masked, targets = load("synthetic", reader(Task.MASKED_LM, 40, mask_id=3), 30, block_size=9).source.fetch(0, 30)
    assert bool((masked[targets != IGNORED] == 3).all())
    assert (targets != IGNORED).sum(1).tolist() == [1] * 30
    inputs, targets = load("synthetic", reader(Task.SEQUENCE_CLASSIFICATION, 40, num_classes=3), 30).source.fetch(0, 30)
    assert inputs.shape == (30, 64)
    assert sorted(set(targets.tolist())) == [0, 1, 2]
    refusal("does not say how large its vocabulary", "synthetic", reader(vocab_size=0))
    refusal("is a language model", "synthetic", reader(), loss=LossName.MSE)


def test_synthetic_targets_by_loss() -> None:
    net = images(4)
    _, bce = load("synthetic", net, 50, image_size=8, loss=LossName.BCE).source.fetch(0, 50)
    _, mse = load("synthetic", net, 50, image_size=8, loss=LossName.MSE).source.fetch(0, 50)
    assert (bce.shape, mse.shape) == ((50, 4), (50, 4))
    assert sorted(set(bce.flatten().tolist())) == [0.0, 1.0]
    assert abs(float(mse.std()) - 1) < 0.2
    assert bce.dtype == mse.dtype == torch.float32


# --- through real networks ---


@pytest.mark.parametrize(
    ("kind", "task"),
    [("gpt2", Task.CAUSAL_LM), ("bert_masked", Task.MASKED_LM), ("bert_classifier", Task.SEQUENCE_CLASSIFICATION)],
)
def test_hugging_face_networks_read_it(tmp_path: Path, kind: str, task: Task) -> None:
    model = getattr(hf_networks, kind)().eval()
    net = reader(task, 40, 16, lambda text: [ord(c) % 37 for c in text], 3, mask_id=39, pad_id=0)
    if task is Task.SEQUENCE_CLASSIFICATION:
        for i, text in enumerate(("a b c", "d", "efghijk" * 9)):
            (tmp_path / str(i)).mkdir()
            (tmp_path / str(i) / "0.txt").write_text(text)
        spec = f"folder:{tmp_path}"
    else:
        (tmp_path / "a.txt").write_text("the quick brown fox " * 20)
        spec = f"text:{tmp_path}/a.txt"
    source = load(spec, net, 5).source
    work = Workload(model, source, make_loss("auto", task=task), torch.device("cpu"), torch.float32)
    with torch.no_grad():
        loss = work.loss(*work.fetch(0, source.n))
    assert 0.5 < float(loss) < 6


def test_shared_text(shared: Path) -> None:
    data = load(f"text:{shared}/text/tinyshakespeare.txt", reader(vocab_size=65, max_length=256), 64)
    text = (shared / "text" / "tinyshakespeare.txt").read_text("utf-8")
    alphabet = sorted(set(text))
    assert data.info.n_available == len(text) // 128
    assert "".join(alphabet[i] for i in data.source.fetch(0, 1)[0][0].tolist()) in text
