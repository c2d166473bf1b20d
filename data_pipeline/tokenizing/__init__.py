"""From raw samples to codes: claims, workers, filters, fitting, encoding, auditing."""
