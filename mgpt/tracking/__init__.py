"""Console, metrics.jsonl and Weights & Biases: three views of one record."""
