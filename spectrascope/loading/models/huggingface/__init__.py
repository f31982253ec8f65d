"""Hugging Face folders, Hub repositories and adapters to networks."""
