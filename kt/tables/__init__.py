"""Tables: their columns, the one way to write and read them, and the final ones."""
