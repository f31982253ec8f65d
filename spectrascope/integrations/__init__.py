"""Curvature while a network trains: a monitor for any loop, callbacks for Hugging Face's Trainer and Lightning.

Each probes every so many steps within a stated share of the training time, leaves the training bit for bit as it would
be without, and logs to JSON lines, TensorBoard and Weights & Biases. Import the module of what you train with:
``monitor``, ``hf_trainer``, ``lightning``; and ``loggers``.
"""
