"""Single-device models: the transformer, its attention, head and loss."""
