"""Data ``ramp``: brightness that rises from the first sample to the last."""

from __future__ import annotations

import torch

from spectrascope.loading.data.sampling import Batch, describe
from spectrascope.loading.data.source import DataRequest, DataSource, LoadedData
from spectrascope.workload import TensorSource


def ramp(spec: str, request: DataRequest) -> LoadedData:
    """The samples, three labels in turn; another source would read files here."""
    n = request.num_samples
    x = torch.linspace(0, 1, n * 12).view(n, 1, 3, 4)
    batch = Batch(TensorSource(x, torch.arange(n) % 3), n, "as they are")
    return describe(request, spec, batch, n_classes=3, label_order="in turns")


RAMP = DataSource(("ramp[:SLOPE]",), ramp, images=True)
