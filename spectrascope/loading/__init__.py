"""From names and files to a network and a fixed batch of samples.

``target.load_model`` turns one model string into a network with its provenance, ``datasets.load_dataset`` one
dataset string into a :class:`spectrascope.workload.SampleSource`. Below them: ``checkpoint`` reads weights
and never runs code, ``recognise`` finds the architecture from keys and shapes, ``architectures`` builds
networks by name or from a user's factory, ``torchvision_models`` is the only door to torchvision's models
(imported on demand, it costs seconds), ``images`` decodes files, ``labels`` numbers the classes, ``zoo``
holds the built-in networks. Every refusal is a one-line :class:`spectrascope.errors.LoadError`,
:class:`~spectrascope.errors.DataError` or :class:`~spectrascope.errors.NonFiniteError`.
"""
