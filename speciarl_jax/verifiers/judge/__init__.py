"""What language models that judge have in common."""
