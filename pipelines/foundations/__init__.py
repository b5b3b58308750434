"""Foundations: the ideas that the five demos stand on, one readable file a topic, each with its page beside it."""
