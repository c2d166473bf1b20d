"""The training loop and what it owns: checkpoints, the record, guards."""
