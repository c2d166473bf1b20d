"""Tokenised shards and the order in which training reads them.

shards    the format: writer, reader, index, manifest        verify   its proof
dataset   the shards of a folder as one list                 reindex  what is derived, made anew
lengths   tokens of each sample, counted once                outlines its text as ids, kept
source    what is trained on, opened and checked             draws    keyed randomness
mixer     which document comes when                          packing  documents into rows
documents one document from outline and codes                loader   rows of ids for a step
arrays    several npy arrays in one mapped file

    shards -> dataset -> lengths (outlines) -> source -> mixer (draws, packing) -> loader
"""
