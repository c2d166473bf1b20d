"""One script a stage, read top to bottom."""
