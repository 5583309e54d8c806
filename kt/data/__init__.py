"""The data set: decoding, splits, and what a model sees of an image."""
