"""Measures that look at text and pixels, never at the model's own opinion, and the report."""
