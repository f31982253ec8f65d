"""Curvature along given directions: the engines, the choice among them and what they share."""
