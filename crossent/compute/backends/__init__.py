"""Ways to read the columns. Each backend is two functions, ``part`` and ``pull``, and knows no loss."""
