"""Statistics and words on tables alone; nothing here knows torch."""
