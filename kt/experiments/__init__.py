"""Experiments beside the pairs: a student of its own and its teachers, by one rule of the workflow each."""
