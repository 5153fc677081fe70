"""From sums to what is said: numbers with their intervals, and curves.

spread             how much terms scatter, and how well that is known
means              cross-entropy, information gained, skill, accuracy, Brier, mean errors
isotonic           the best calibrated curve, and how much it flatters itself
decomposition      uncertainty, discrimination, miscalibration
reliability        the curve that shows them; ECE as a secondary figure
by_class           class by class
slices · by_slice  slice by slice, and what its own curve says; the costliest rows
"""
