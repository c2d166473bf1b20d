"""One file a source: an iterator over raw samples."""
