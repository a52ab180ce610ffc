"""What agents with a training loop of their own share."""
