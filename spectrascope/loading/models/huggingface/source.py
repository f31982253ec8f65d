"""Models of Hugging Face's libraries: Hub repositories, folders, and adapters to either."""

from __future__ import annotations

from spectrascope.errors import LoadError
from spectrascope.loading.loaded import LoadedModel
from spectrascope.loading.models.huggingface.adapters import is_adapter_alone, load_adapter
from spectrascope.loading.models.huggingface.open import load_huggingface
from spectrascope.loading.models.source import ModelRequest, ModelSource

__all__ = ["HUGGINGFACE"]


class _HuggingFace(ModelSource):
    """``hf:org/name`` or ``hf:org/name@revision``."""

    usage = "hf:org/name"
    prefix = "hf:"
    options = frozenset({"base", "trust_remote_code"})

    def open(self, request: ModelRequest) -> LoadedModel:
        """Load a repository's network, or an adapter onto the base it names."""
        adapter = request.base is not None or is_adapter_alone(
            request.spec,
            allow_download=request.allow_download,
            trust_remote_code=request.trust_remote_code,
            headers_only=request.headers_only,
        )
        return self.load(request, adapter=adapter)

    def load(self, request: ModelRequest, *, adapter: bool) -> LoadedModel:
        """Load a repository or a local folder that is known to hold an adapter or a whole network.

        Raises:
            LoadError: see :func:`load_adapter` and :func:`load_huggingface`.
            NonFiniteError: a weight is NaN or infinite.
        """
        spec, num_classes = request.spec, request.num_classes
        download, trust, headers = request.allow_download, request.trust_remote_code, request.headers_only
        if adapter:
            return load_adapter(
                spec, base=request.base, num_classes=num_classes, allow_download=download, trust_remote_code=trust,
                headers_only=headers,
            )  # fmt: skip
        if request.base is not None:
            raise LoadError(f"--base goes with a PEFT adapter, but {spec!r} is a whole model; drop --base")
        return load_huggingface(
            spec, num_classes=num_classes, allow_download=download, trust_remote_code=trust, headers_only=headers,
            keep_bfloat16=request.keep_bfloat16,
        )  # fmt: skip


HUGGINGFACE = _HuggingFace()
