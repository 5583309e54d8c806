"""What benchmarks compare, where it is more than a few lines."""
