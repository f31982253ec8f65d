"""What a benchmark says: frozen records, standard library only."""

from __future__ import annotations

from dataclasses import dataclass

from spectrascope.records.report import DataInfo, ModelInfo
from spectrascope.records.values import SCHEMA_VERSION, Missing

__all__ = ["BenchReport", "PeerTimes"]


@dataclass(frozen=True, slots=True)
class PeerTimes:
    """Another tool's own Hessian–vector product in the same run; all that was not measured says why.

    ``seconds`` are for all products and samples, scaled up from ``n_products_timed`` on ``n_samples_timed`` samples;
    ``ratio`` is to this package's engines, its median over rounds; ``max_relative_difference`` is that of h, as in
    :class:`BenchReport`, over the products timed.
    """

    name: str
    version: str
    product: str
    n_products_timed: int
    n_samples_timed: int
    seconds: float | Missing
    forward_equivalents: float | Missing
    per_product: float | Missing
    ratio: float | Missing
    ratio_rounds: tuple[float, ...]
    max_relative_difference: float | Missing


@dataclass(frozen=True, slots=True)
class BenchReport:
    """The engines of ``probe`` against plain double backprop and other tools, timed in one interleaved run.

    Seconds are read from ``clock``: processor time (of all threads) on a CPU, so that other work on the machine does
    not count, wall time on a device. They are for all ``n_products`` = layers × directions over ``n_samples`` samples,
    of ``n_samples_asked``. Two references are timed on ``n_products_timed`` products, of ``n_layers_timed`` layers
    evenly over the network, and ``n_samples_timed`` samples, and scaled up (``extrapolated``): ``reference`` rebuilds
    the gradient's graph for every product; ``kept_graph`` builds it once per micro-batch for all weights and products,
    the fastest honest way to use autograd. ``peers`` are other tools, where asked for. A forward-equivalent is the time
    of one plain ``no_grad`` forward pass over the same samples, taken at the fastest micro-batch and memory format
    found; ``…_per_product`` counts them per (layer, direction). ``max_relative_difference`` is
    max |h − h_reference| / max |h of the layer| over the products timed.
    """

    model: ModelInfo
    data: DataInfo
    versions: dict[str, str]
    device: str
    dtype: str
    threads: int
    clock: str
    engines: dict[str, int]
    top_k: int
    n_layers: int
    n_layers_timed: int
    n_samples_asked: int
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
    peers: tuple[PeerTimes, ...] = ()
    schema_version: int = SCHEMA_VERSION
