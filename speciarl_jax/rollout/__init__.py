"""Sampling answers, and the log-probabilities of answers that were sampled."""
