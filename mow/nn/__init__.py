"""Layers that every method may use: linear maps per module, Transformers, policies, Muon."""
