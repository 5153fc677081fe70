"""What cross-entropy wins over other losses.

contest        the verb: each loss trained alike, judged alike
scoreboard     the record of a comparison
crossed        a mean over rows and seeds, and its error
steepness      how hard a loss pulls at the logit of the label
"""
