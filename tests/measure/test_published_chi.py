"""Why the paper's curvature ratios are 10³ to 10⁷ and these are of order 1: the scale of the cotangents.

The published factors were made of gradients of the *mean* loss, of the true labels. A per-sample cotangent is larger by
the number of samples N, so C_delta was too small by N² and chi = h / h_kron too large by as much.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import spectrascope
from spectrascope.loading.data.open import load_dataset
from spectrascope.loading.models.open import load_model
from spectrascope.records.decomposition import Decomposition
from spectrascope.records.report import LayerReport, Report
from spectrascope.records.values import LossName

N = 256
LAYERS = ["layer1.2.conv2.weight", "layer2.1.conv1.weight", "layer3.0.conv2.weight", "linear.weight"]


@pytest.fixture(scope="module")
def subject(shared: Path):
    loaded = load_model(str(shared / "checkpoints" / "resnet20-12fca82f.th"))
    data = load_dataset(
        f"folder:{shared / 'data' / 'cifar10-test'}",
        loaded,
        num_samples=N,
        seed=0,
        data_root=None,
        download=False,
        image_size=None,
        block_size=None,
        balanced=False,
        skip_bad=False,
        loss=LossName.AUTO,
    )
    return loaded.model, *data.source.fetch(0, N)


@pytest.fixture(scope="module")
def report(subject) -> Report:
    model, x, y = subject
    return spectrascope.decompose(
        model, (x, y), F.cross_entropy, layers=LAYERS, top_k=10, micro_batch=32, self_check=False
    )


def rows_of(report: Report) -> dict[str, tuple[LayerReport, Decomposition]]:
    found = {}
    for row in report.layers:
        if isinstance(row, LayerReport):
            assert isinstance(row.decomposition, Decomposition)
            found[row.info.name] = (row, row.decomposition)
    return found


def test_chi_is_of_order_one(report: Report) -> None:
    rows = rows_of(report)
    assert set(rows) == set(LAYERS)
    for name, (_, found) in rows.items():
        assert 0.4 < found.alignment.chi_median < 12, name  # type: ignore[operator]
        assert found.alignment.identity_residual <= 1e-8, name  # type: ignore[operator]


def test_mean_reduced_true_label_cotangents_give_the_published_magnitude(subject, report: Report) -> None:
    """As published: hooks on one backward pass of the mean loss, patches by unfold, eigenbases aside."""
    model, x, y = subject
    name = "layer2.1.conv1"
    module = model.get_submodule(name)
    kept: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _, inputs, out: kept.update(a=inputs[0].detach())),
        module.register_full_backward_hook(lambda _, grad_in, grad_out: kept.update(delta=grad_out[0].detach())),
    ]
    F.cross_entropy(model(x), y).backward()
    for hook in hooks:
        hook.remove()
    gradient = module.weight.grad.flatten(1).double()
    model.zero_grad()
    u, sigma, vt = torch.linalg.svd(gradient, full_matrices=False)
    patches = F.unfold(kept["a"], 3, padding=1).double()  # (N, n, T)
    deltas = kept["delta"].flatten(2).double()  # (N, m, T)
    c_a = torch.einsum("int,ijt->nj", patches, patches) / N
    c_delta = torch.einsum("imt,ijt->mj", deltas, deltas) / (N * deltas.shape[2])
    row, found = rows_of(report)[f"{name}.weight"]
    k = len(row.measurement.h)
    assert sigma[:k].numpy() == pytest.approx(np.array(row.measurement.sigma), rel=1e-4)
    h_kron = (u[:, :k].T @ c_delta @ u[:, :k]).diagonal() * (vt[:k] @ c_a @ vt[:k].T).diagonal()
    chi = np.array(row.measurement.h) / h_kron.numpy()
    assert np.median(chi) > 1e3
    assert chi.max() < 1e7
    # Nothing but that scale: --fisher empirical, divided by N once more on either side, is the same number.
    again = spectrascope.decompose(
        model, (x, y), F.cross_entropy, layers=[f"{name}.weight"], top_k=10, micro_batch=32, self_check=False,
        fisher="empirical",
    )  # fmt: skip
    (_, empirical) = rows_of(again)[f"{name}.weight"]
    assert np.array(empirical.alignment.chi) * N**2 == pytest.approx(chi, rel=1e-3)
    assert np.median(chi) / found.alignment.chi_median > 1e3
