"""Offline jobs: raw pictures and captions to verified, tokenised shards."""
