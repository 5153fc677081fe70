"""From what a user has to rows that a network reads.

dataset        files, embedded sets and arrays come in
task           what is to be predicted
split, parts   rows to learn from, and rows to test once
repeats        equal rows, and what a weight means
leak           columns that know too much
preparation    a table of anything into features (tokens, of texts)
problem        rows ready for a network, and which are held out from which
"""
