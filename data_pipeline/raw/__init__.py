"""Raw shards: which there are, read strictly and written alike."""
