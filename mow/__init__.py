"""Mixture-of-World Models: one agent that learns many visual tasks. Importing this loads nothing heavy."""

__version__ = "0.1.0"
