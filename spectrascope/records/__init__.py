"""Frozen records, standard library only: what every number, verdict and advice is made of."""
