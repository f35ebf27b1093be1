"""Data that was recorded before training: its files, the windows drawn from them, and the behaviours that make it."""
