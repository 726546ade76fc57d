"""What the page shows of detectors: boxes found, gained and lost, precision by recall, scores of pseudo-boxes."""
