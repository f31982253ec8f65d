"""Checkpoint files to state dicts. Nothing in a file is ever executed."""
