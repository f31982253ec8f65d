"""What a report recommends and on what evidence, and checkpoints of one run put in a row. Never imports torch."""
