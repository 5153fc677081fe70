"""Which of several models is better on the same rows, by how much, and whether the rows can tell.

join         the same rows of every model, in one order
rival        what they cost one model, as it is and once calibrated
contrast     one model against the baseline: its parts, slices and rows
ranking      all of them against it, in one record, with sentences
comparison   from files or arrays to that record
"""
