"""Commands that are killed and started again, and what must be true of what they leave."""
