"""Offline jobs: sources of pictures and text, packing, tokenising, verifying shards."""
