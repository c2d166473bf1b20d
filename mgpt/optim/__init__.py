"""Optimizers, learning-rate schedules and averaged weights, for parameters that may be sharded."""
