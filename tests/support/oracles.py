"""Slow, obvious float64 versions of everything the measuring room computes. No cleverness, no shared code."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

Loss = Callable[[object, Tensor], Tensor]


def as_matrix(
    tensor: Tensor, layout: str = "flat", rows: tuple[slice, ...] | None = None, expert: int | None = None
) -> Tensor:
    """A stored weight (or its gradient) as the m × n matrix of MEASUREMENT section 1."""
    if expert is not None:
        tensor = tensor[expert]
    if layout == "transposed":
        whole = tensor.T
    elif layout == "conv_transpose":
        whole = torch.stack([tensor[:, o].reshape(-1) for o in range(tensor.shape[1])])
    else:
        whole = tensor.reshape(tensor.shape[0], -1)
    if rows is None:
        return whole
    chosen = [row for run in rows for row in range(run.start, run.stop)]
    return torch.stack([whole[row] for row in chosen])


def from_matrix(matrix: Tensor, like: Tensor, *view: object) -> Tensor:
    """The inverse of :func:`as_matrix`, zero outside the block; found by probing it with entry numbers."""
    numbers = as_matrix(torch.arange(like.numel(), dtype=torch.float64).reshape(like.shape), *view)
    flat = torch.zeros(like.numel(), dtype=torch.float64)
    flat[numbers.reshape(-1).long()] = matrix.reshape(-1).double()
    return flat.reshape(like.shape)


def dense_hessian(loss: Callable[[Tensor], Tensor], weight: Tensor) -> Tensor:
    """Hessian (P, P) of ``loss(weight)``, one row per entry of the weight."""
    leaf = weight.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
    rows = []
    for entry in gradient.reshape(-1):
        if entry.requires_grad:
            (row,) = torch.autograd.grad(entry, leaf, retain_graph=True, materialize_grads=True)
        else:
            row = torch.zeros_like(leaf)
        rows.append(row.reshape(-1))
    return torch.stack(rows).double()


def loss_of_weight(model: nn.Module, name: str, inputs: Tensor, targets: Tensor, loss: Loss) -> Callable:
    """The loss as a function of one named parameter, on a float64 copy of the model."""
    double = copy.deepcopy(model).double().eval()
    weight = double.get_parameter(name)
    places = [
        (module, local)
        for module in double.modules()
        for local, parameter in module._parameters.items()
        if parameter is weight
    ]
    x = inputs.double() if inputs.is_floating_point() else inputs
    y = targets.double() if targets.is_floating_point() else targets

    def evaluate(value: Tensor) -> Tensor:
        for module, local in places:
            module._parameters.pop(local, None)
            setattr(module, local, value)
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return loss(double(x), y)

    return evaluate


def hessian_block(model: nn.Module, name: str, inputs: Tensor, targets: Tensor, loss: Loss) -> Tensor:
    """Dense Hessian block of one weight, (P, P) in the order of its stored entries."""
    weight = model.get_parameter(name).detach().double()
    return dense_hessian(loss_of_weight(model, name, inputs, targets, loss), weight)


def gradient_of(model: nn.Module, name: str, inputs: Tensor, targets: Tensor, loss: Loss) -> Tensor:
    """Mean gradient of one weight in its stored shape."""
    leaf = model.get_parameter(name).detach().double().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(
        loss_of_weight(model, name, inputs, targets, loss)(leaf), leaf, materialize_grads=True
    )
    return gradient


def curvature_matrix(hessian: Tensor, directions: list[Tensor]) -> Tensor:
    """M_kj = <D_k, H D_j> by two loops."""
    k = len(directions)
    matrix = torch.zeros(k, k, dtype=torch.float64)
    for i in range(k):
        for j in range(k):
            matrix[i, j] = directions[i].reshape(-1) @ hessian @ directions[j].reshape(-1)
    return matrix


def joint_forms(
    model: nn.Module, steps: list[tuple[str, Tensor]], inputs: Tensor, targets: Tensor, loss: Loss
) -> tuple[Tensor, Tensor]:
    """Second derivatives (S, S) of the loss in the lengths of S steps, each of a parameter by name, at zero.

    Returns:
        Those of the loss, and those of the loss of the outputs made linear in the lengths (Gauss-Newton).
    """
    own = dict(model.named_parameters(remove_duplicate=False))
    zero = torch.zeros(len(steps), dtype=torch.float64)

    def outputs(lengths: Tensor) -> Tensor:
        moved = {}
        for length, (name, step) in zip(lengths, steps, strict=True):
            moved[name] = moved.get(name, own[name].detach()) + length * step
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return torch.func.functional_call(model, moved, (inputs,), tie_weights=True)

    hessian = torch.autograd.functional.hessian(lambda lengths: loss(outputs(lengths), targets), zero)
    at, slopes = outputs(zero).detach(), torch.autograd.functional.jacobian(outputs, zero)
    return hessian, torch.autograd.functional.hessian(lambda lengths: loss(at + slopes @ lengths, targets), zero)


def svd_directions(gradient: Tensor, k: int, eps: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """sigma (k,), left (m, k), right (n, k) and numerical rank, by numpy."""
    left, sigma, right = np.linalg.svd(gradient.double().numpy(), full_matrices=False)
    rank = int((sigma > max(gradient.shape) * eps * sigma[0]).sum())
    keep = min(k, rank)
    return sigma[:keep], left[:, :keep], right[:keep].T, rank


def gauss_newton_block(model: nn.Module, name: str, inputs: Tensor, targets: Tensor, loss: Loss) -> Tensor:
    """(1/N) Σ_i J_iᵀ (∇²_f ℓ_i) J_i with explicit per-sample Jacobians."""
    weight = model.get_parameter(name).detach().double()
    total = torch.zeros(weight.numel(), weight.numel(), dtype=torch.float64)
    for i in range(len(inputs)):
        x, y = inputs[i : i + 1], targets[i : i + 1]
        kept: list[Tensor] = []

        def keep(output: Tensor, _: Tensor, kept: list[Tensor] = kept) -> Tensor:
            kept.append(output)
            return output.sum()

        leaf = weight.clone().requires_grad_()
        loss_of_weight(model, name, x, y, keep)(leaf)
        (output,) = kept
        rows = [
            torch.autograd.grad(output[0, c], leaf, retain_graph=True, materialize_grads=True)[0].reshape(-1)
            for c in range(output.shape[1])
        ]
        jacobian = torch.stack(rows)
        label = y.double() if y.is_floating_point() else y
        curved = dense_hessian(lambda f, label=label: loss(f, label), output.detach())
        total += jacobian.T @ curved @ jacobian
    return total / len(inputs)


def second_difference(loss: Callable[[Tensor], Tensor], weight: Tensor, direction: Tensor, step: float) -> float:
    """(L(W + εD) − 2 L(W) + L(W − εD)) / ε² with one Richardson step."""
    with torch.no_grad():

        def at(e: float) -> float:
            up, middle, down = (float(loss(weight + s * e * direction)) for s in (1, 0, -1))
            return (up - 2 * middle + down) / e**2

        return (4 * at(step / 2) - at(step)) / 3


def group_ranges(n: int, groups: int) -> list[tuple[int, int]]:
    """Nearly equal runs of samples covering 0 … n."""
    groups = max(1, min(groups, n))
    ends = [round(g * n / groups) for g in range(groups + 1)]
    return list(itertools.pairwise(ends))


class _TwiceDifferentiable(torch.overrides.TorchFunctionMode):
    """Where PyTorch has no second derivative but the function is simple, the same function written out."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (nn.functional.hardsigmoid, torch._C._nn.hardsigmoid):
            return ((args[0] + 3) / 6).clamp(0, 1)
        return func(*args, **(kwargs or {}))


def curvature_of_weights(
    loss: Callable[[], Tensor], weights: list[nn.Parameter], directions: list[list[Tensor]]
) -> list[Tensor]:
    """M_kj = <D_k, H_W D_j> of each weight by double backprop, directions shaped as the weights are stored.

    One graph for all weights, one product per direction; attention by its twice differentiable kernel. The model
    must be held still by the caller (evaluation mode, gradients on for the weights).
    """
    with (
        torch.enable_grad(),
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        _TwiceDifferentiable(),
    ):
        gradients = torch.autograd.grad(loss(), weights, create_graph=True)
    found = []
    for weight, gradient, along in zip(weights, gradients, directions, strict=True):
        rows = []
        for direction in along:
            if gradient.requires_grad:
                (product,) = torch.autograd.grad(
                    (gradient * direction).sum(), weight, retain_graph=True, materialize_grads=True
                )
            else:
                product = torch.zeros_like(weight)
            rows.append(torch.stack([(product * other).sum() for other in along]))
        found.append(torch.stack(rows).detach())
    return found


def difference_of_losses(
    loss: Callable[[], Tensor], weight: nn.Parameter, direction: Tensor, *, kinks: bool = False
) -> tuple[float, float]:
    """h = d²L/dε² along a direction from values of the loss alone, and how far two step lengths disagree.

    Central differences of fourth order, (−f(2ε) + 16 f(ε) − 30 f(0) + 16 f(−ε) − f(−2ε)) / 12ε², for a ladder of
    steps; of neighbouring steps the two that agree best. Rounding is 1e-16·L/ε², truncation ε⁴; ``kinks`` takes
    steps short enough to cross hardly any.
    """
    ladder = [1e-4, 3e-5, 1e-5, 3e-6, 1e-6, 3e-7] if kinks else [1e-2, 5e-3, 2e-3, 1e-3, 5e-4, 2e-4]
    kept = weight.detach().clone()

    def at(e: float) -> float:
        with torch.no_grad():
            weight.copy_(kept + e * direction)
            return float(loss())

    try:
        middle = at(0.0)
        estimates = [(16 * (at(e) + at(-e)) - (at(2 * e) + at(-2 * e)) - 30 * middle) / (12 * e**2) for e in ladder]
    finally:
        with torch.no_grad():
            weight.copy_(kept)
    spreads = [abs(b - a) for a, b in itertools.pairwise(estimates)]
    best = spreads.index(min(spreads))
    return estimates[best + 1], spreads[best]


# --- spectra ---


def transfer_by_svd(matrix: Tensor, beta: float, damping: float) -> Tensor:
    """U diag(sigma / (sigma² + d)^(beta/2)) Vᵀ in float64; zero singular values give zero."""
    left, sigma, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    result = torch.zeros_like(matrix, dtype=torch.float64)
    cut = max(matrix.shape) * torch.finfo(matrix.dtype).eps * float(sigma.max())
    for k, value in enumerate(sigma.tolist()):
        if value > (0 if damping else cut):
            result += value / (value**2 + damping) ** (beta / 2) * torch.outer(left[:, k], right[k])
    return result


def matrix_with_spectrum(rows: int, columns: int, sigma: Tensor, seed: int = 0) -> Tensor:
    """A float64 matrix with these singular values and random singular vectors."""
    generator = torch.Generator().manual_seed(seed)
    sides = [torch.randn(size, len(sigma), generator=generator, dtype=torch.float64) for size in (rows, columns)]
    left, right = (torch.linalg.qr(side)[0] for side in sides)
    return (left * sigma) @ right.T


def power_law(r: int, decay: float) -> Tensor:
    """sigma_k = k^-decay."""
    return torch.arange(1, r + 1, dtype=torch.float64) ** -decay
