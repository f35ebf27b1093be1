"""One run in progress: collect, update, log, evaluate."""
