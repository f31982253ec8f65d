"""Words and names that every room writes alike."""
