"""What is minimised, and what logits then say.

spelling       losses and codes as short texts
suspects       labels that are probably wrong, and a loss that believes them less
inverse        what minimises a loss, and the way from there back to the truth
imbalance      rare classes, and the way back to the true frequencies
objective      all of it together: the loss of a batch and its way back
"""
