"""Intervals that hold 95 % of the time.

interval   of a mean of skewed independent rows, of a share, of an entropy
cluster    of a mean of rows that belong together, with its p-value; several p-values at once
"""
