"""Backends that train one model on many ranks: single (the truth), fsdp2 and zero3."""
