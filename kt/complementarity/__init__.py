"""Complementary knowledge of every ordered pair of models, all pairs at once."""
