"""Traps of language models: padding rows, wrappers that hide the task, gates that never decide, uneven labels."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import spectrascope
from spectrascope.errors import DataError
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


def test_uneven_numbers_of_labels_are_refused():
    net = make("AutoModelForMaskedLM", "bert", **BERT)
    labels = masked(2)
    labels[::2, 3] = -100
    with pytest.raises(DataError, match="samples have from 1 to 2 labels that count"):
        spectrascope.probe(net, {"input_ids": IDS, "labels": labels}, top_k=2)


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
