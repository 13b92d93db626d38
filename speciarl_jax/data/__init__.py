"""Images, labels, prompts and the order in which they come."""
