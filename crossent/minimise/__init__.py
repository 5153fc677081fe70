"""Minimise: train a network on real data by minimising cross-entropy, and say honestly how low it got.

fit            the way through; what a user calls
data           files, embedded sets and arrays come in
task           what is to be predicted
split, parts   rows to learn from, to test once
preparation    a table of anything into features
problem        rows ready for a network, and which are held out from which
recipe         the settings
objective      what is minimised, and what logits then say (spelling, inverse, imbalance)
augment        rows that were never seen
networks/      from features, images or texts to logits
learn          from a problem and a recipe to networks that have learnt it
train          the loop (optimiser)
contest        the same with several losses, compared (scoreboard, crossed, steepness)
suspects       labels that are probably wrong
run            the result: a model and its folder
"""

from crossent.minimise.fit import fit as fit
from crossent.minimise.learn import learn as learn
from crossent.minimise.problem import Problem as Problem
from crossent.minimise.recipe import Recipe as Recipe
from crossent.minimise.run import Run as Run
from crossent.minimise.run import load as load
from crossent.minimise.train import Progress as Progress
