"""A model string to a network with its weights and what is known about its inputs."""
