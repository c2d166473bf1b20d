"""From ids to text and pictures: sampling, grammar, engine, pipeline."""
