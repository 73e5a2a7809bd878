"""The unit in which work is counted: one forward of the full-size network on one sample.

A trained sample takes one forward, and a backward that is worth two.
"""

DENSE_COST = 3.0
