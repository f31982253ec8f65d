"""What a benchmark says: frozen records, standard library only."""

from __future__ import annotations

from dataclasses import dataclass

from spectrascope.records.report import DataInfo, ModelInfo
from spectrascope.records.values import SCHEMA_VERSION

__all__ = ["BenchReport"]


@dataclass(frozen=True, slots=True)
class BenchReport:
    """The engines of ``probe`` against plain double backprop, timed in one interleaved run.

    Seconds are for all ``n_products`` = layers × directions over ``n_samples`` samples. Two references are timed on
    ``n_products_timed`` products of ``n_samples_timed`` samples and scaled up (``extrapolated``): ``reference``
    rebuilds the gradient's graph for every product, as PyHessian and curvlinops do; ``kept_graph`` builds it once
    per micro-batch for all weights and products, the fastest honest way to use autograd. A
    forward-equivalent is the time of one plain ``no_grad`` forward pass over the same samples, taken at the
    fastest micro-batch and memory format found; ``…_per_product`` counts them per (layer, direction).
    ``max_relative_difference`` is
    max |h − h_reference| / max |h_reference of the layer| over the products timed.
    """

    model: ModelInfo
    data: DataInfo
    versions: dict[str, str]
    device: str
    dtype: str
    threads: int
    engines: dict[str, int]
    top_k: int
    n_layers: int
    n_samples: int
    n_samples_timed: int
    n_products: int
    n_products_timed: int
    extrapolated: bool
    rounds: int
    micro_batch: int
    forward_seconds: float
    engine_seconds: float
    reference_seconds: float
    ratio: float
    ratio_rounds: tuple[float, ...]
    kept_graph_seconds: float
    kept_graph_ratio: float
    engine_forward_equivalents: float
    reference_forward_equivalents: float
    kept_graph_forward_equivalents: float
    engine_per_product: float
    reference_per_product: float
    kept_graph_per_product: float
    max_relative_difference: float
    schema_version: int = SCHEMA_VERSION
