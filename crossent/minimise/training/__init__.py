"""From a problem and a recipe to networks that have learnt it.

learn          the networks of all folds, and what they say of rows they had not seen
train          the loop
outlook        what more time would win
state          all that changes while it runs, to go back to and to go on from
judge          what networks say of rows
optimiser      how weights are moved
augment        rows that were never seen
"""
