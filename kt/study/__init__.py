"""A study: its configuration, read strictly, checked early, as one frozen and typed object."""
