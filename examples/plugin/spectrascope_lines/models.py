"""Networks ``lines:WIDTH``: one linear layer over a line of WIDTH pixels."""

from __future__ import annotations

from torch import nn

from spectrascope.loading.loaded import LoadedModel
from spectrascope.loading.models.finish import finish
from spectrascope.loading.models.source import Architecture, ModelRequest, ModelSource
from spectrascope.loading.preprocessing import Preprocessing


class Lines(ModelSource):
    """``lines:WIDTH``, with random weights; as ``--arch`` for a checkpoint of such a network."""

    usage, prefix = "lines:WIDTH", "lines:"

    def architecture(self, name: str) -> Architecture | None:
        """The network that a name means, and what it reads; nothing for the names of others."""
        if not name.startswith(self.prefix):
            return None
        width = int(name.removeprefix(self.prefix))

        def build(num_classes: int | None) -> nn.Module:
            return nn.Sequential(nn.Flatten(), nn.Linear(width, num_classes or 3))

        return Architecture(
            name=name,
            source="lines",
            build=build,
            preprocessing_of=lambda network: Preprocessing(size=(1, width), channels=1),
            class_names_of=lambda n: {},
        )

    def open(self, request: ModelRequest) -> LoadedModel:
        """Build it; another source would read weights here."""
        architecture = self.architecture(request.spec)
        assert architecture is not None  # only its own strings come here
        network = architecture.build(request.num_classes)
        return finish(request.spec, architecture, network, request.num_classes, weights="random")


SOURCE = Lines()
