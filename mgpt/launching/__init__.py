"""Starting a stage on processes: local torchrun, and schedulers."""
