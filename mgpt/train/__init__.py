"""The training loop and what it owns: optimiser, schedule, checkpoints, guards."""
