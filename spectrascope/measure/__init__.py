"""Everything that runs a network: gradient, directions, curvature, factors, checks.

The order of work is in ``run``.
"""
