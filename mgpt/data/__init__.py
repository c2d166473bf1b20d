"""Tokenised shards and the order in which training reads them."""
