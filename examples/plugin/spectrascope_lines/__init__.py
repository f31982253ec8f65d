"""An example of a distribution that adds a source of models and one of data to spectrascope."""
