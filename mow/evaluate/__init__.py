"""What trained runs score and imagine: tables, films, ablations."""
