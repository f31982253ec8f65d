"""Which weights are measured, how each is seen as a matrix, and a network that is left exactly as found."""
