"""The networks: from prepared features, or images, to logits.

tabular        tables and plain arrays: several perceptrons side by side
residual       images: a small residual network
"""
