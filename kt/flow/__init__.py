"""Knowledge flow: a student borrows its teachers' intermediate features while it learns, and ends without them."""
