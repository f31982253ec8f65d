"""Time one optimizer step, SpectralNewton beside torch.optim.Muon, on the weights of a ResNet-18 and of a GPT-2 block.

    python examples/optimizers/step_cost.py                 # the CPU, 1 thread
    python examples/optimizers/step_cost.py --device cuda   # a GPU

All optimizers step their own copy of the same weights with the same gradients, in turn, round after round. Muon takes
matrices only, so convolution kernels are flattened for everybody; momentum, Nesterov and weight decay are on for
everybody. Printed is the median over rounds, and the median of the ratios to Muon within each round.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from spectrascope.optim import SpectralNewton

RESNET18 = [
    (64, 147), *[(64, 576)] * 4, (128, 576), *[(128, 1152)] * 3, (128, 64), (256, 1152), *[(256, 2304)] * 3, (256, 128),
    (512, 2304), *[(512, 4608)] * 3, (512, 256), (1000, 512),
]  # fmt: skip
GPT2_BLOCK = [(2304, 768), (768, 768), (3072, 768), (768, 3072)]
SHAPES = {"ResNet-18": RESNET18, "GPT-2 block": GPT2_BLOCK}


def contenders() -> dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]]:
    """What is timed, by name; Muon first."""
    made: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
        "Muon (torch)": lambda p: torch.optim.Muon(p, lr=1e-3, weight_decay=0.1),
    }
    for beta in (2.0, 1.0, 1.37, 0.5):
        for scale_free in (False, True):
            name = f"SN β={beta:g}{', scale-free' if scale_free else ''}"
            made[name] = lambda p, b=beta, s=scale_free: SpectralNewton(p, 1e-3, b, weight_decay=0.1, scale_free=s)
    return made


def gradients(shapes: list[tuple[int, int]], device: str) -> list[Tensor]:
    """Matrices whose singular values fall as those of a network's gradient do, sigma_k ∝ 1/k."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for m, n in shapes:
        r = min(m, n)
        left, right = (torch.linalg.qr(torch.randn(size, r, generator=generator))[0] for size in (m, n))
        found.append((left / torch.arange(1, r + 1)) @ right.T)
    return [matrix.to(device) for matrix in found]


def time_steps(shapes: list[tuple[int, int]], device: str, rounds: int) -> dict[str, list[float]]:
    """Seconds of each step by contender (on a CPU the process's own); the first round, which warms up, is left out."""
    clock = time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    grads = gradients(shapes, device)
    optimizers = {}
    for name, make in contenders().items():
        parameters = [nn.Parameter(torch.zeros_like(g)) for g in grads]
        for parameter, gradient in zip(parameters, grads, strict=True):
            parameter.grad = gradient.clone()
        optimizers[name] = make(parameters)
    seconds: dict[str, list[float]] = {name: [] for name in optimizers}
    for i in range(rounds + 1):
        for name, optimizer in optimizers.items():
            began = clock()
            optimizer.step()
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            if i:
                seconds[name].append(clock() - began)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--shapes", choices=[*SHAPES, "tiny"], nargs="*", default=list(SHAPES))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{options.device}, {options.threads} threads, torch {torch.__version__}, {options.rounds} rounds")
    for network in options.shapes:
        shapes = SHAPES.get(network, [(16, 24), (24, 16), (8, 8)])
        seconds = time_steps(shapes, options.device, options.rounds)
        (muon, reference), *_ = seconds.items()
        print(f"\n{network}: {len(shapes)} weights")
        for name, found in seconds.items():
            ratios = [a / b for a, b in zip(found, reference, strict=True)]
            spread = f"({min(ratios):.2f} to {max(ratios):.2f})" if name != muon else ""
            middle = statistics.median(ratios)
            print(f"  {name:<24}{1e3 * statistics.median(found):9.1f} ms   {middle:5.2f} × Muon  {spread}")


if __name__ == "__main__":
    main()
