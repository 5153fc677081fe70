"""What cross-entropy wins over other losses.

contest        the verb: each loss trained alike, judged alike
scoreboard     the record of a comparison
judged         what networks say of the rows that judge them, and what it costs
ground         what they learn from and are judged by: a test, folds, or loaders of one's own
crossed        a mean over rows and trainings, and its error
steepness      how hard a loss pulls at the logit of the label
"""
