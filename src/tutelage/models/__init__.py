"""Networks; they know nothing of files, losses or training."""
