"""Pictures to codes and back: one protocol, one file for each family of tokenizers."""
