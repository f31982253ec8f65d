"""The paper, end to end: each claim recomputed from its released arrays, measured here, and judged by a stated rule."""
