"""Training: objectives, the loop, checkpoints, devices."""
