"""Rewards: each module has a pure function `reward(category_BN, valid_BN, ...)`."""
