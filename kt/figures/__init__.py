"""Figures: each a function from tables to a drawing; their captions stand beside them."""
