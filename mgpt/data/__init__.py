"""Tokenised shards and the order in which training reads them.

shards    the format: writer, reader, index, manifest        verify   its proof
dataset   the shards of a folder as one list                 lengths  tokens of each sample
source    what is trained on, opened and checked             draws    keyed randomness
mixer     which document comes when                          packing  documents into rows
loader    rows of ids for a step

    shards -> dataset -> lengths -> source -> mixer (draws, packing) -> loader
"""
