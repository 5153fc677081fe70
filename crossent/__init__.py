"""Cross-entropy for PyTorch: compute it, measure it, minimise it, report it."""
