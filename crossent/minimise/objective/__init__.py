"""What is minimised, and what logits then say.

catalogue      every loss by itself: its name in a recipe, what minimises it, its slopes
spelling       losses and codes as short texts
suspects       labels that are probably wrong, and a loss that believes them less
inverse        the way from the minimiser of a loss, or of a sum of losses, back to the truth
imbalance      rare classes, and the way back to the true frequencies
objective      all of it together: the loss of a batch and its way back
"""
