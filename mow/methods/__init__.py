"""Methods: each folder is one algorithm, with its networks, losses, presets and learner."""
