"""Training: the two updates, the loop around them, and what a run writes down."""
