"""Train the built-in mini GPT-2 on a text file, byte by byte, and save a checkpoint that spectrascope recognises.

    python examples/train_mini_gpt2.py FILE [--out mini_gpt2.pt] [--minutes 5 | --steps N] [--seed 0]
    spectrascope probe mini_gpt2.pt --dataset text:FILE

With ``--classes CKPT`` it puts a head for two classes on the trunk of such a checkpoint instead: a piece of the text as
it stands, or with the letters inside its words shuffled. The trunk stays as it is unless ``--tune`` is given; the state
that predicts the next byte says little of the classes, so that the head alone remains not much better than a guess.
The pieces held out from training are written to a folder beside the checkpoint, one file each, so that the classifier
can be measured on them:

    python examples/train_mini_gpt2.py FILE --classes mini_gpt2.pt --tune --out mini_gpt2_classes.pt
    spectrascope probe mini_gpt2_classes.pt --dataset folder:mini_gpt2_classes_texts

The last tenth of the file is held out. ``--steps`` gives the same weights on every run on a machine; how far
``--minutes`` get depends on how fast it is.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectrascope.loading.models.open import load_model
from spectrascope.loading.zoo.mini_gpt2 import MiniGPT2ForSequenceClassification, MiniGPT2LMHeadModel

RATES = {"language model": 1e-3, "head": 1e-2, "head and trunk": 3e-4}  # learning rates
WARM_UP = 0.05  # of the whole training
WEIGHT_DECAY = 0.1
CLASSES = ("real", "scrambled")  # numbered in this order, as spectrascope numbers the folders
Loss = Callable[[], Tensor]


def main() -> None:
    options = parse()
    torch.manual_seed(options.seed)
    text = options.file.read_bytes()
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    cut = len(data) * 9 // 10
    if len(data) - cut < 4 * options.block:
        sys.exit(f"{options.file}: {len(data)} bytes; expected at least {40 * options.block}")
    if options.classes is None:
        model, results = train_language_model(data[:cut], data[cut:], options)
    else:
        model, results = train_classifier(text[:cut], text[cut:], options)
    torch.save({"state_dict": model.state_dict(), **results}, options.out)
    print(f"saved {options.out} ({options.out.stat().st_size / 1e6:.1f} MB)")


def train_language_model(
    train: Tensor, held_out: Tensor, options: argparse.Namespace
) -> tuple[nn.Module, dict[str, float]]:
    model = MiniGPT2LMHeadModel(256, options.block)

    def mean_loss(blocks: Tensor) -> Tensor:
        return F.cross_entropy(model(blocks)[:, :-1].flatten(0, 1), blocks[:, 1:].flatten())

    def drawn() -> Tensor:
        starts = torch.randint(len(train) - options.block, (options.batch, 1))
        return mean_loss(train[starts + torch.arange(options.block)])

    steps = optimise(model, list(model.parameters()), drawn, RATES["language model"], options)
    blocks = held_out[: len(held_out) // options.block * options.block].view(-1, options.block)[:256]
    with torch.no_grad():
        loss = sum(float(mean_loss(part)) * len(part) for part in blocks.split(32)) / len(blocks)
    print(
        f"held out: loss {loss:.4f} per byte ({loss / math.log(2):.3f} bits), {len(blocks)} blocks of {options.block}"
    )
    return model, {"held_out_loss": loss, "steps": steps}


def train_classifier(train: bytes, held_out: bytes, options: argparse.Namespace) -> tuple[nn.Module, dict[str, float]]:
    trunk = load_model(str(options.classes)).model
    if not isinstance(trunk, MiniGPT2LMHeadModel) or trunk.context < options.block:
        sys.exit(f"{options.classes}: expected a mini GPT-2 for at least {options.block} tokens")
    model = MiniGPT2ForSequenceClassification(len(CLASSES), trunk.vocabulary, trunk.context)
    model.load_state_dict({**model.state_dict(), **{k: v for k, v in trunk.state_dict().items() if "head" not in k}})
    rng = random.Random(options.seed)
    inputs, labels = as_tensors(pieces(train, options.block, rng))
    test_pieces = pieces(held_out, options.block, rng)
    weights = list(model.parameters()) if options.tune else list(model.score.parameters())
    for parameter in model.parameters():
        parameter.requires_grad_(any(parameter is weight for weight in weights))

    def drawn() -> Tensor:
        chosen = torch.randint(len(labels), (options.batch,))
        return F.cross_entropy(model(inputs[chosen]), labels[chosen])

    steps = optimise(model, weights, drawn, RATES["head and trunk" if options.tune else "head"], options)
    tests, truth = as_tensors(test_pieces)
    with torch.no_grad():
        scores = torch.cat([model(part) for part in tests.split(32)])
    loss, accuracy = float(F.cross_entropy(scores, truth)), float((scores.argmax(1) == truth).double().mean())
    print(f"held out: loss {loss:.4f}, accuracy {accuracy:.3f} on {len(truth)} pieces of {options.block} bytes")
    folder = options.out.with_name(f"{options.out.stem}_texts")
    for name in CLASSES:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number, (piece, label) in enumerate(test_pieces):
        (folder / CLASSES[label] / f"{number:05}.txt").write_bytes(piece)
    print(f"wrote {len(test_pieces)} held-out texts to {folder}")
    return model, {"held_out_loss": loss, "held_out_accuracy": accuracy, "steps": steps}


def pieces(text: bytes, length: int, rng: random.Random) -> list[tuple[bytes, int]]:
    """Pieces of the text, in turn as they are (0) and with the letters inside each word shuffled (1)."""
    found: list[tuple[bytes, int]] = []
    for start in range(0, len(text) - length + 1, length):
        piece, label = text[start : start + length], len(found) % 2
        words = [bytes(rng.sample(word, len(word))) if label else word for word in piece.split(b" ")]
        found.append((b" ".join(words), label))
    return found


def as_tensors(found: list[tuple[bytes, int]]) -> tuple[Tensor, Tensor]:
    return torch.tensor([list(piece) for piece, _ in found]), torch.tensor([label for _, label in found])


def optimise(
    model: nn.Module, weights: list[nn.Parameter], drawn: Loss, rate: float, options: argparse.Namespace
) -> int:
    """AdamW, with a learning rate that rises to ``rate``, then falls along a cosine; the number of steps taken."""
    groups = [
        {"params": [p for p in weights if p.dim() >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in weights if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.99), fused=True)
    model.train()
    began, step, average, told = time.monotonic(), 0, 0.0, 0.0
    while True:
        seconds = time.monotonic() - began
        done = step / options.steps if options.steps else seconds / (60 * options.minutes)
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = rate * min(done / WARM_UP + 0.02, 0.5 * (1 + math.cos(math.pi * done)))
        loss = drawn()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        average = float(loss.detach()) if step == 0 else 0.95 * average + 0.05 * float(loss.detach())
        step += 1
        if seconds - told > 20:
            told = seconds
            print(f"step {step:5}  {seconds:5.0f} s  loss {average:.3f}", flush=True)
    model.eval()
    print(f"step {step:5}  {time.monotonic() - began:5.0f} s  loss {average:.3f}", flush=True)
    return step


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the built-in mini GPT-2 on a text file.")
    parser.add_argument("file", type=Path, help="the text")
    parser.add_argument("--out", type=Path, default=Path("mini_gpt2.pt"), help="where the checkpoint goes")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, default=5.0, help="how long to train")
    length.add_argument("--steps", type=int, help="how many steps to train instead")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--block", type=int, default=64, help="bytes per sample, the longest text the network takes")
    parser.add_argument("--batch", type=int, default=16, help="samples per step")
    parser.add_argument("--classes", type=Path, metavar="CKPT", help="train a two-class head on this one's trunk")
    parser.add_argument("--tune", action="store_true", help="with --classes: train the trunk too")
    return parser.parse_args()


if __name__ == "__main__":
    main()
