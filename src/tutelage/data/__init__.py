"""From files to batches, and back."""
