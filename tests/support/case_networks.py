"""Networks and their parts for the cases of ``tests/cases.py``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def let(value: Any, run: Callable) -> Any:
    """``run(value)``: a name for an intermediate inside a lambda."""
    return run(value)


class Net(nn.Module):
    """A network from parts and one function ``forward(net, x)``."""

    def __init__(self, forward: Callable, **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self._run = forward

    def forward(self, x: Tensor) -> Tensor:
        return self._run(self, x)


class Conv1D(nn.Module):
    """Hugging Face's linear layer: the weight is stored (in, out)."""

    def __init__(self, n_out: int, n_in: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_in, n_out) * 0.5)
        self.bias = nn.Parameter(torch.randn(n_out) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        size = (*x.shape[:-1], self.weight.shape[1])
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(size)


def batch_norm(kind: type[nn.Module], channels: int, affine: bool = True) -> nn.Module:
    """BatchNorm with statistics and gains (some negative) that are not the identity."""
    norm = kind(channels, affine=affine)
    with torch.no_grad():
        norm.running_mean.uniform_(-0.3, 0.3)
        norm.running_var.uniform_(0.4, 2.0)
        if affine:
            norm.weight.uniform_(-1.5, 1.5)
            norm.bias.uniform_(-0.3, 0.3)
    return norm


def conv_net(conv: Callable[[], nn.Module], width: int, act: nn.Module | None = None) -> nn.Module:
    return Net(
        lambda s, x: s.fc(s.act(s.conv(F.relu(s.stem(x)))).mean((2, 3))),
        stem=nn.Conv2d(3, 4, 3, padding=1),
        conv=conv(),
        act=act or nn.ReLU(),
        fc=nn.Linear(width, 4),
    )


def two_convs(forward: Callable, **parts: nn.Module) -> Callable[[], nn.Module]:
    return lambda: Net(forward, a=nn.Conv2d(3, 4, 3, padding=1), **{k: v() for k, v in parts.items()})


def conv(i: int = 4, o: int = 4, **rest) -> Callable[[], nn.Module]:
    return lambda: nn.Conv2d(i, o, 3, **{"padding": 1, **rest})


def fc(i: int = 4, o: int = 4) -> Callable[[], nn.Module]:
    return lambda: nn.Linear(i, o)


def residual_in_place(s: nn.Module, x: Tensor) -> Tensor:
    h = F.relu(s.a(x), inplace=True)
    y = s.bn(s.b(h))
    y += h
    y = F.relu_(y)
    z = s.c(y)
    z += y
    return s.fc(F.relu(z).mean((2, 3)))


def mask_then_overwritten(s: nn.Module, x: Tensor) -> Tensor:
    h = F.hardtanh(s.a(x), -0.3, 0.4)
    h += s.b(x)  # the masks of the operations above must survive this, and the same below
    h = F.leaky_relu(h, 0.3)
    h *= 1.7
    return s.fc(h.mean((2, 3)))


def shuffle(s: nn.Module, x: Tensor) -> Tensor:
    h = F.relu(s.a(x))
    left, right = h.chunk(2, 1)
    h = torch.cat([left, F.relu(s.b(right))], 1)
    b, c, y, w = h.shape
    h = h.view(b, 2, c // 2, y, w).transpose(1, 2).reshape(b, c, y, w)
    return s.fc(F.pad(h[:, :, 1:, ::2], (1, 0, 0, 2), value=0.3).permute(0, 2, 3, 1).flatten(1))


def attention_net() -> nn.Module:
    return Net(
        lambda s, x: s.head(F.relu(s.up(s.att(x, x, x, need_weights=False)[0].flatten(1)))),
        att=nn.MultiheadAttention(4, 2, batch_first=True),
        up=nn.Linear(12, 5),
        head=nn.Linear(5, 3),
    )


def se_block(gate: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
    def run(s: nn.Module, x: Tensor) -> Tensor:
        h = F.relu(s.a(x))
        h = h * gate(s.up(F.leaky_relu(s.down(6 * h.mean((2, 3))))))[:, :, None, None]
        return s.fc(F.relu(s.b(h)).mean((2, 3)))

    return two_convs(run, down=fc(4, 3), up=fc(3, 4), b=conv(), fc=fc())


def shared_parallel() -> nn.Module:
    return Net(lambda s, x: s.fc(F.relu(s.a(x[:, :3])) + F.relu(s.a(x[:, 3:]))), a=nn.Linear(3, 5), fc=nn.Linear(5, 4))


def shared_sequence() -> nn.Module:
    return Net(lambda s, x: s.fc(F.relu(s.a(F.relu(s.a(x))))), a=nn.Linear(6, 6), fc=nn.Linear(6, 4))


def tied_tokens() -> nn.Module:
    net = Net(
        lambda s, x: s.head(F.relu(s.mid(s.table(x).mean(1)))),
        table=nn.Embedding(7, 4),
        mid=nn.Linear(4, 4),
        head=nn.Linear(4, 7, bias=False),
    )
    net.head.weight = net.table.weight
    return net


def mlp(act: nn.Module, out: int = 4) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), act, nn.Linear(5, 5), act, nn.Linear(5, out))


def frozen() -> nn.Module:
    net = mlp(nn.ReLU())
    net[0].weight.requires_grad_(False)
    return net


def huber_margin(output: Tensor, target: Tensor) -> Tensor:
    return (output.square().sum(1).sqrt() + (output[:, 0] - target) ** 4).mean()


def vectors(width: int) -> Callable[[int], Tensor]:
    return lambda n: torch.randn(n, width)


def images(channels: int, size: int) -> Callable[[int], Tensor]:
    return lambda n: torch.randn(n, channels, size, size)


def labels(n: int, classes: int) -> Tensor:
    return torch.arange(n) * 7 % 11 % classes


def classes(count: int) -> Callable[[int], Tensor]:
    return lambda n: labels(n, count)


def fan_out() -> nn.Module:
    def run(s: nn.Module, x: Tensor) -> Tensor:
        h, other = F.relu(s.a(x)), F.relu(s.b(x))
        extra = h.clamp(0.1, 0.5)  # its cotangent reaches h after that of the sum, which ``other`` shares
        return s.c((h + other) + extra)

    return Net(run, a=nn.Linear(6, 5), b=nn.Linear(6, 5), c=nn.Linear(5, 4))


def fused_qkv() -> nn.Module:
    def run(s: nn.Module, x: Tensor) -> Tensor:
        q, k, v = F.linear(x, s.att.in_proj_weight, s.att.in_proj_bias).chunk(3, 1)
        return s.att.out_proj(F.relu(q) + k.abs() - v)[:, :4]

    return Net(run, att=nn.MultiheadAttention(6, 2))


class CausalSelfAttention(nn.Module):
    """Named as in minGPT; what it does to q, k and v on single rows is piecewise linear."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_attn = Conv1D(3 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.c_attn(x).chunk(3, 1)
        return F.relu(q) + k.abs() - v


def fused_conv1d() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 4), CausalSelfAttention(4), nn.Linear(4, 4))


class Experts(nn.Module):
    """Two experts in one stacked weight (E, out, in); each sample goes to both, in shares of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(6, 2)
        self.up_proj = nn.Parameter(torch.randn(2, 5, 6) * 0.5)
        self.down_proj = nn.Parameter(torch.randn(2, 4, 5) * 0.5)
        self.head = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        shares = self.gate(x).softmax(-1)
        hidden = F.relu(torch.einsum("bi,eoi->beo", x, self.up_proj))
        return self.head(torch.einsum("be,beo->bo", shares, torch.einsum("bei,eoi->beo", hidden, self.down_proj)))
