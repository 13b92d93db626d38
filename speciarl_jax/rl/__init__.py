"""The mathematics of reinforcement: rewards, advantages, losses, optimizer. Pure functions."""
