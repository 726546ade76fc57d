"""What a label means: loss, decoding, pseudo-labels, metric."""
