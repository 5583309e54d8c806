"""Policies: they are trained on games, and learn from each other by knowledge flow."""
