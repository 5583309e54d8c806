"""kt: find, transfer and explain complementary knowledge between pretrained vision models."""

__version__ = "0.1.0"
