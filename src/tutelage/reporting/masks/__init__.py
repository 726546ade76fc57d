"""What the page shows of segmenters: pixels gained and lost, and pseudo-masks painted over their pictures."""
