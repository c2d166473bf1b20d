"""The command: the table of stages, help, and the one door to Hydra."""
