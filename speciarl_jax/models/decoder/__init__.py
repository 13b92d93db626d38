"""The text decoder that the families share: layers, attention, rotary positions, caches."""
