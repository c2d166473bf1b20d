"""Released weights in, transformers folders out: names, shapes, layouts, a tensor at a time."""
