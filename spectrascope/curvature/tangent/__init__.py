"""First-order tangents pushed through a recorded forward pass, weighted by its adjoints (MEASUREMENT section 5c)."""
