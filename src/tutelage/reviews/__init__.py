"""Looking through pseudo-labels and correcting them."""
