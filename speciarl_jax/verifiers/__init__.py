"""Verifiers: from an answer and a true label to a category of the ladder."""
