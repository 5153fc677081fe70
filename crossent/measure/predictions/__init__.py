"""Rows in, checked once, at the door, so that no formula behind it has to.

form          probabilities, log-probabilities, logits: which of them came
truth         what came: a class, a one-hot row, a distribution, annotators' counts
naming        which column belongs to which class
columns       what stands beside the probabilities: ids, weights, groups, slices, bytes
predictions   all of it in one value
"""
