"""torchvision's ViT-B/16 on random images, as a factory. Its head is drawn: behind one of zeros nothing has a gradient.

spectrascope bench examples/benchmarks/vit_b_16.py:workload --rounds 1 --json
"""

from __future__ import annotations

import torch
from torch import nn
from torchvision.models import vit_b_16

from spectrascope.workload import TensorSource, Workload


def workload(samples: int = 1) -> Workload:
    """Random weights, images and labels; the same every time."""
    torch.manual_seed(0)
    model = vit_b_16(weights=None).eval()
    nn.init.trunc_normal_(model.heads.head.weight, std=0.02)
    source = TensorSource(torch.randn(samples, 3, 224, 224), torch.randint(1000, (samples,)))
    return Workload(model, source, nn.functional.cross_entropy, torch.device("cpu"), torch.float32)
