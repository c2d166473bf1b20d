"""Random draws that are pure functions of what they are for.

Every draw is keyed by (seed, purpose, identity, epoch), never by how many draws came before, so
that it can be made again anywhere and in any order. All arithmetic is modulo 2^64, on numpy
arrays, and exact on every machine.

    key = draw_key(seed, "variant", "caption")
    draws_N = hash64(key, identities_N, epochs_N)       # uint64, uniform
    entries_N = permute(draw_key(seed, "order"), places_N, size=10)   # part of a shuffle
"""

import hashlib

import numpy as np

FEISTEL_ROUNDS = 6


def draw_key(seed: int, *purpose: str | int) -> int:
    """A 64-bit key for one kind of draw; distinct purposes give unrelated keys."""
    text = "\0".join([str(seed), *map(str, purpose)]).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def identity64(raw_shard: str, key: str) -> int:
    """A sample's identity (raw shard, key) as 64 bits; the same in every output and resolution."""
    digest = hashlib.blake2b(f"{raw_shard}\0{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def hash64(key: int | np.ndarray, *values: np.ndarray) -> np.ndarray:
    """Uniform uint64 from a key, or an array of keys, and integer arrays that broadcast with it, by
    splitmix64 after each.

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators" (2014).
    """
    state = np.asarray(key, dtype=np.uint64)
    for value in values:
        state = _splitmix64(np.asarray(value).astype(np.uint64) ^ state)
    return state


def below(probability: float, draws: np.ndarray) -> np.ndarray:
    """Which uint64 draws fall in the lowest `probability` of their range, bool."""
    assert 0.0 <= probability <= 1.0, probability
    return (draws >> np.uint64(11)) < np.uint64(round(probability * 2**53))


def permute(key: int | np.ndarray, places: np.ndarray, size: int) -> np.ndarray:
    """Where a keyed permutation of 0..size-1 sends each of `places`; no table, any order.

    Args:
        key: one for all places, or an array with one for each.

    A Feistel network over an even number of bits (at least six), walked until back in range
    (Black, Rogaway, "Ciphers with arbitrary finite domains", 2002).
    """
    half_bits = np.uint64(max(3, ((size - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half_bits)) - 1)
    images = np.asarray(places).astype(np.uint64)
    assert images.size == 0 or int(images.max()) < size, (int(images.max()), size)
    if size == 1:  # the walk below would take 64 rounds of the network to get there
        return np.zeros(images.shape, dtype=np.int64)
    keys = np.asarray(key, dtype=np.uint64)
    round_keys = hash64(keys[..., None], np.arange(FEISTEL_ROUNDS))
    outside = np.ones(images.shape, dtype=bool)
    while outside.any():
        left, right = images[outside] >> half_bits, images[outside] & mask
        keys_here = round_keys[outside] if keys.ndim else round_keys
        for number in range(FEISTEL_ROUNDS):
            left, right = right, left ^ (hash64(keys_here[..., number], right) & mask)
        images[outside] = (left << half_bits) | right
        outside = images >= np.uint64(size)
    return images.astype(np.int64)


def _splitmix64(state: np.ndarray) -> np.ndarray:
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
