"""The README's optimizer runs as printed."""

import re
from pathlib import Path

import torch

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")


def test_the_readmes_optimizer_steps() -> None:
    (code,) = (code for code in re.findall(r"```py\n(.*?)```", README, re.S) if "SpectralNewton(" in code)
    scope: dict = {}
    exec(code, scope)
    model, optimizer = scope["model"], scope["optimizer"]
    model(torch.randn(8, 64)).square().mean().backward()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step()
    assert all(not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    betas = {id(p): g["beta"] for g in optimizer.param_groups for p in g["params"]}
    assert [betas[id(p)] for p in model.parameters()] == [1.0, None, None, None]
