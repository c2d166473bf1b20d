"""Pictures to codes and back, one file for each family of models."""
