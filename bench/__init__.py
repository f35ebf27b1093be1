"""Microbenchmarks of the ops in kernels/, one file per op. `python -m bench` runs them all; see bench/__main__.py."""
