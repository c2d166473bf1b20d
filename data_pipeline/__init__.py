"""Data jobs, each a stage in a file of its name, and the packages they are made of."""
