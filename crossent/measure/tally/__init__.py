"""One pass over any number of rows as one value that adds up.

tally     the value: add a batch, merge another, ask for the numbers
engine    the same on many machines
packing   as bytes, from rank to rank and into a checkpoint
"""
