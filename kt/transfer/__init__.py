"""Transfer of knowledge from a teacher into a student."""
