"""The zoo: which models there are, their weights and properties."""
