"""Traps of language models: padding rows, wrappers that hide the task, gates that never decide, uneven labels."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import spectrascope
from spectrascope.records.report import SkippedLayer
from tests.support import oracles

transformers = pytest.importorskip("transformers")

IDS = torch.randint(0, 31, (12, 8), generator=torch.Generator().manual_seed(0))
BERT = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 20, "vocab_size": 31,
    "max_position_embeddings": 16,
}  # fmt: skip


def make(auto: str, kind: str, **config) -> nn.Module:
    torch.manual_seed(0)
    return getattr(transformers, auto).from_config(transformers.AutoConfig.for_model(kind, **config))


def masked(places: int) -> torch.Tensor:
    labels = torch.full_like(IDS, -100)
    labels[:, 2 : 2 + places] = IDS[:, 2 : 2 + places]
    return labels


class Tied(nn.Module):
    """Looks up and reads out in one table, whose row 0 is a padding row."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 3, padding_idx=0)
        nn.init.normal_(self.table.weight)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.table(ids).mean(1)))


def test_the_padding_row_of_a_tied_table_counts_in_every_use():
    """The loss depends on the row where it is looked up: differences of the loss itself say how much."""
    torch.manual_seed(0)
    net = Tied().double()
    ids, labels = torch.tensor([[0, 1], [2, 0], [3, 4], [0, 0]]), torch.tensor([1, 2, 0, 0])
    (row,) = spectrascope.probe(net, (ids, labels), top_k=3).layers
    assert net.table.padding_idx == 0
    weight = net.table.weight

    def loss(value: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(torch.tanh(value[ids].mean(1)) @ value.T, labels)

    hessian = oracles.dense_hessian(loss, weight)
    gradient = torch.autograd.functional.jacobian(loss, weight.detach())
    _, left, right, _ = oracles.svd_directions(gradient, 3, 2**-52)
    directions = [torch.from_numpy(left[:, k : k + 1] @ right[:, k : k + 1].T) for k in range(3)]
    expected = oracles.curvature_matrix(hessian, directions).diagonal()
    assert list(row.measurement.h) == pytest.approx(expected.tolist(), rel=1e-8)


def test_a_masked_language_model_with_a_padding_row_passes_its_self_check():
    report = spectrascope.probe(make("AutoModelForMaskedLM", "bert", **BERT), {"input_ids": IDS, "labels": masked(1)})
    assert report.provenance.self_check.residual < 1e-3


@pytest.mark.parametrize(
    ("auto", "kind"),
    [
        ("AutoModelForMaskedLM", "bert"),
        ("AutoModelForCausalLM", "gpt2"),
        ("AutoModelForTokenClassification", "bert"),
        ("AutoModelForSequenceClassification", "bert"),
    ],
)
def test_uneven_numbers_of_labels_are_weighed_as_the_model_itself_does(auto, kind):
    small = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 31, "n_positions": 16, "tie_word_embeddings": False}
    net = make(auto, kind, **(BERT if kind == "bert" else small)).double().eval()
    labels = masked(3)
    labels[::2, 3] = labels[1::4, 2] = -100
    if "Classification" in auto:
        labels = torch.where(labels >= 0, labels % 2, labels)
        labels = labels[:, 3] if "Sequence" in auto else labels
    mask = torch.ones_like(IDS)
    mask[::3, 6:] = 0
    batch = {"input_ids": IDS, "attention_mask": mask}
    report = spectrascope.probe(net, {**batch, "labels": labels}, top_k=2, curvature_samples="all", layers=["*.0.*"])

    def own() -> torch.Tensor:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return net(**batch, labels=labels).loss

    assert report.provenance.loss == pytest.approx(own().item(), rel=1e-7)  # causal models take their loss in float32
    for row in [r for r in report.layers if not isinstance(r, SkippedLayer)][-2:]:
        weight = net.get_parameter(row.info.name)
        gradient = torch.autograd.grad(own(), weight)[0]
        flip = (lambda m: m.T) if row.info.shape != tuple(weight.shape) else (lambda m: m)
        _, left, right, _ = oracles.svd_directions(flip(gradient), 2, 2**-52)
        along = [flip(torch.from_numpy(left[:, k : k + 1] @ right[:, k : k + 1].T)) for k in range(2)]
        (truth,) = oracles.curvature_of_weights(own, [weight], [along])
        assert list(row.measurement.h) == pytest.approx(truth.diagonal().tolist(), rel=1e-4, abs=1e-10)


PROBLEMS = {
    "named, several labels": (3, "multi_label_classification", torch.float32, "bce"),
    "left open, several labels": (3, None, torch.float32, "bce"),
    "left open, one label": (1, None, torch.float32, "mse"),
    "named, several numbers": (3, "regression", torch.float32, "mse"),
    "left open, classes": (3, None, torch.int64, "cross-entropy"),
}


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("name", [None, "auto"])
def test_a_classifiers_own_loss_is_measured(problem, name):
    count, kind, dtype, expected = PROBLEMS[problem]
    net = make("AutoModelForSequenceClassification", "bert", **BERT, num_labels=count, problem_type=kind).eval()
    labels = (IDS[:, : 1 if dtype is torch.int64 else count] % 2).squeeze(1).to(dtype)
    found = spectrascope.probe(net, {"input_ids": IDS, "labels": labels}, name, top_k=1, self_check=False).provenance
    assert net.config.problem_type == kind
    assert (found.loss_name, found.loss) == (expected, pytest.approx(net(IDS, labels=labels).loss.item(), rel=1e-6))


def test_an_adapter_in_memory_keeps_the_task_of_its_base():
    peft = pytest.importorskip("peft")
    config = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 31, "n_positions": 16}
    net = make("AutoModelForCausalLM", "gpt2", **config)
    batch = {"input_ids": IDS, "labels": IDS}
    plain = spectrascope.probe(net, batch, top_k=2).provenance
    wrapped = peft.get_peft_model(net, peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True))
    found = spectrascope.probe(wrapped, batch, top_k=2)
    assert found.provenance.loss_name == plain.loss_name == "causal-lm"
    assert found.provenance.loss == pytest.approx(plain.loss, rel=1e-6)  # B starts at zero
    assert any("lora_B" in row.info.name and row.status.value == "ok" for row in found.layers)


def test_a_gate_that_never_decides_fails_alone():
    """Of one expert chosen, the share is 1 whatever the gate says: its gradient is rounding."""
    net = make(
        "AutoModelForCausalLM", "mixtral", hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, intermediate_size=20, vocab_size=31, num_local_experts=3, num_experts_per_tok=1,
    )  # fmt: skip
    rows = {row.info.name: row for row in spectrascope.probe(net, {"input_ids": IDS, "labels": IDS}, top_k=2).layers}
    gate = rows["model.layers.0.mlp.gate.weight"]
    assert isinstance(gate, SkippedLayer)
    assert "zero" in gate.reason or "rounding" in gate.reason
    assert sum(row.status.value == "ok" for row in rows.values()) > 5
