"""Linear networks whose curvature along the gradient's directions is a known power of the slope."""

import torch
from torch import Tensor, nn


def planted_network(
    beta: float, seed: int, *, n: int = 512, k: int = 12, decay: float = 1.0
) -> tuple[nn.Module, Tensor, Tensor]:
    """A linear map under squared loss with sigma_j ∝ j^-decay and h_j ∝ sigma_j^beta over the k directions there are.

    With inputs of covariance V diag(lambda) Vᵀ, targets of pure noise and weights U diag(delta) Vᵀ, the expected
    gradient is U diag(delta·lambda) Vᵀ and the curvature along its j-th direction lambda_j, times one constant each: so
    lambda = sigma^beta, delta = sigma^(1 - beta). Returned with n sampled inputs and targets.
    """
    outputs, inputs = k + 4, k + 8
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    left = torch.linalg.qr(normal(outputs, k))[0]
    right = torch.linalg.qr(normal(inputs, inputs))[0]
    sigma = torch.arange(1, k + 1, dtype=torch.float64) ** -decay
    variance = torch.full((inputs,), 1e-9, dtype=torch.float64)
    variance[:k] = sigma**beta
    network = nn.Sequential(nn.Linear(inputs, outputs, bias=False).double())
    with torch.no_grad():
        network[0].weight.copy_((left * sigma ** (1 - beta)) @ right[:, :k].T)
    return network, (normal(n, inputs) * variance.sqrt()) @ right.T, 0.3 * normal(n, outputs)
