"""Run a network and measure it; ``run`` has the order of work."""
