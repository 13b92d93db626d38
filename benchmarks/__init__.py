"""Measures a training step on random weights, and the limits of the machine."""
