"""Minimise: train a network on real data by minimising cross-entropy, and say honestly how low it got.

fit            the way through; what a user calls (own, a network and loaders of the user's)
recipe         the settings, as data
data/          from files, tables and arrays to rows that a network reads
objective/     what is minimised, and what logits then say
networks/      from features, images or texts to logits
training/      from a problem and a recipe to networks that have learnt it
finish         calibrated, tested once, written down (left, what is left to win)
run            the result: a model and its folder (export, one file that runs anywhere)
tune/          the search for a recipe
contest/       the same with several losses, compared
estimators     the scikit-learn face
callbacks/     measuring inside other people's training
"""

from crossent.minimise.data.problem import Problem as Problem
from crossent.minimise.fit import fit as fit
from crossent.minimise.recipe import Recipe as Recipe
from crossent.minimise.run import Run as Run
from crossent.minimise.run import load as load
from crossent.minimise.training.learn import learn as learn
from crossent.minimise.training.train import Progress as Progress
