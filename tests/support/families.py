"""The catalogue: a tiny float64 workload for every family of networks that exact curvature is held to.

    workload = FAMILIES["llama"]()                    # weights are random, seeded and trained-like
    FAMILIES["llama"].kind, FAMILIES["bloom"].fallback

Models of Hugging Face cast to float32 inside: run them under ``no_narrowing()`` wherever float64 is compared.
"""

from __future__ import annotations

from tests.support.families_huggingface import HUGGINGFACE
from tests.support.families_torch import TIMM, TORCH
from tests.support.families_torchvision import TORCHVISION
from tests.support.family import Family
from tests.support.trained_like import no_narrowing

__all__ = ["FAMILIES", "Family", "no_narrowing"]

FAMILIES: dict[str, Family] = {**TORCHVISION, **HUGGINGFACE, **TORCH, **TIMM}
