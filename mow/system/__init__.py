"""The machine and its files: cores, memory, streams, paths, and files that are written whole."""
