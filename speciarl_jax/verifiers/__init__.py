"""Verifiers: from an answer and a true label to one of the ordered categories."""
