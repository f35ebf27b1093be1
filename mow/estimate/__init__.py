"""Estimate of a run before it starts: parameters, memory, arithmetic, hours."""
