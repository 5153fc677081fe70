"""The search for a recipe.

tune           the verb: a search, one training with the best, one test
search         trials, one after the other, until the time is over
study          what several processes share and none can lose
space          what a search may change
"""
