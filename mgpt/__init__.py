"""mgpt: decoder-only transformers that read and write text and pictures as one sequence."""
