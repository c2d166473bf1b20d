"""The embedded corpus: small rendered scenes with exact truth for every task format."""
