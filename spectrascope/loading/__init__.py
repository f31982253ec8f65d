"""From names and files to a network and a fixed batch of samples.

``models.open.load_model`` turns one model string into a network with its provenance, ``data.open.load_dataset`` one
dataset string into a :class:`spectrascope.workload.SampleSource`. Each walks one tuple, ``SOURCES``, in which every
source stands once (``models.source`` and ``data.source`` say what a source is); installed distributions add theirs by
entry points. ``checkpoints.read`` is the one reader of weights and never runs code, ``models.recognise`` finds the
architecture from keys and shapes, ``zoo`` holds the built-in networks. Every refusal is a one-line
:class:`spectrascope.errors.LoadError`, :class:`~spectrascope.errors.DataError` or
:class:`~spectrascope.errors.NonFiniteError`.
"""
