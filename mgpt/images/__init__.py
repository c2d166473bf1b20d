"""The one place that decodes, crops and normalises pictures, and the aspect-ratio buckets."""
