"""Evaluation of trained runs: tables, films, ablations."""
