"""A data string to a fixed, seeded, ordered batch of samples."""
