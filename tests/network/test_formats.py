"""A network in another format: how many bytes are alive on the way there, and what of the one given changes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import spectrascope
from spectrascope.measure.workloads import prepare_workload
from spectrascope.network.formats import in_format
from spectrascope.records.report import ProbeOptions
from spectrascope.workload import Run, TensorSource
from tests.support.counting import bytes_alive
from tests.support.ranks import make_run

WEIGHT, WEIGHTS = 64 * 64, 8
CPU = torch.device("cpu")


def deep() -> nn.Sequential:
    net = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(WEIGHTS - 1)))
    net.append(net[0])  # shared
    net.append(nn.Linear(64, 64, bias=False))
    return net


@pytest.mark.parametrize(
    ("dtype", "in_place", "most"),
    [
        (torch.float64, True, 8 * WEIGHTS + 4),  # and one weight as it was
        (torch.float64, False, (4 + 8) * WEIGHTS),
        (torch.bfloat16, True, 4 * WEIGHTS + 2),
        (torch.bfloat16, False, (4 + 2) * WEIGHTS),
    ],
)
def test_no_more_is_alive_than_what_is_given_and_what_is_made(dtype: torch.dtype, in_place: bool, most: int) -> None:
    net = deep()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    with bytes_alive() as alive:
        for parameter in net.parameters():
            alive.see(parameter)
        made = in_format(net, CPU, dtype, in_place=in_place)
    assert alive.peak <= most * WEIGHT
    assert (made is net) is in_place
    assert made[0] is made[WEIGHTS - 1]  # type: ignore[index]
    assert {p.dtype for p in made.parameters()} == {dtype}
    assert all(torch.equal(p, before[name].to(dtype)) for name, p in made.named_parameters())
    if not in_place:
        assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())


@pytest.mark.parametrize(
    ("dtype", "owned", "changed"),
    [("float64", True, True), ("float64", False, False), ("bfloat16", True, False)],
)
def test_only_a_network_of_our_own_is_changed_and_only_where_no_digit_is_lost(
    dtype: str, owned: bool, changed: bool
) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    run = _run(net, dtype, owned)
    workload = prepare_workload(run)
    assert (workload.model is net) is changed
    assert workload.owned
    assert (next(net.parameters()).dtype is torch.float32) is not changed


def _run(net: nn.Module, dtype: str, owned: bool) -> Run:
    like = make_run("smooth")
    source = TensorSource(torch.randn(4, 3), torch.zeros(4, dtype=torch.long))
    options = ProbeOptions(num_samples=4, dtype=dtype)
    return Run(net, source, None, options, like.model_info, like.data_info, owned=owned)


class _Turned(nn.Module):
    """Pairs of inputs turned by angles kept as complex numbers, as rotary positions are; one weight is complex."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 5), nn.Linear(3, 4)
        self.c = nn.Parameter(torch.randn(3, 3, dtype=torch.complex64))
        self.register_buffer("turns", torch.polar(torch.ones(3), torch.rand(3)))

    def forward(self, x: Tensor) -> Tensor:
        turned = torch.view_as_complex(x.view(-1, 3, 2)) * self.turns
        return self.b((turned @ self.c).abs()) + self.a(torch.view_as_real(turned).flatten(1)).tanh()[:, :4]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_complex_numbers_keep_their_imaginary_parts(dtype: str) -> None:
    torch.manual_seed(0)
    net, x, y = _Turned(), torch.randn(24, 6), torch.randint(0, 4, (24,))
    report = spectrascope.probe(net, (x, y), dtype=dtype)
    assert report.provenance.loss == pytest.approx(float(nn.functional.cross_entropy(net(x), y)), rel=1e-6)
    assert {row.info.name: row.status.value for row in report.layers} == {
        "a.weight": "ok",
        "b.weight": "ok",
        "c": "skipped",
    }


def test_formats_of_complex_numbers_follow() -> None:
    made = in_format(_Turned(), CPU, torch.float64)
    assert (made.turns.dtype, made.c.dtype) == (torch.complex128, torch.complex128)
    assert in_format(made, CPU, torch.float32).c.dtype == torch.complex64
    assert in_format(made, CPU, torch.bfloat16).c.dtype == torch.complex64
