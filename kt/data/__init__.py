"""The data set: sources, decoding, splits, and the inputs of models."""
