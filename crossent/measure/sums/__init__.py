"""From rows to what they add up to: of fixed size, and the same however the rows were split.

likelihood           what each row costs
compensated          sums that do not drift
sums                 moments of cost and weight, by class
cells · distinct     histograms of predictions; as finely told apart as there is room for
histograms           the same for many slices or folds at once, coarser
hashing · sample     the same number on every machine; a sample of rows drawn by it
groups · folds       the same by groups of rows, for honest intervals
counted              how many groups there were
"""
