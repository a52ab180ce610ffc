"""Plan a run before anything runs: memory and hours."""
