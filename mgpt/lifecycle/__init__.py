"""Around every stage: what its output holds, what it was made from, whether it is complete."""
