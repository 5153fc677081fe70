"""Minimise: train a network on real data by minimising cross-entropy, and say honestly how low it got.

fit            the way through; what a user calls
data           files, embedded sets and arrays come in
task           what is to be predicted
split          rows to train, to choose by, to test once
preparation    a table of anything into features
model          the network
recipe         the settings
train          the loop
run            the result: a model and its folder
"""

from crossent.minimise.fit import fit as fit
from crossent.minimise.recipe import Recipe as Recipe
from crossent.minimise.run import Run as Run
from crossent.minimise.run import load as load
from crossent.minimise.train import Progress as Progress
