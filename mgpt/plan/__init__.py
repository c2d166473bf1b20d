"""Memory, time and size of a training run before it is queued, without a GPU."""
