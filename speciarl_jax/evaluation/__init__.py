"""Greedy answers and samples judged, scored, compared and shown."""
