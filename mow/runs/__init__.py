"""One run on disk: folder, lock, checkpoints, logs, provenance."""
