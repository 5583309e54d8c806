"""Tasks: what models learn, and the only place that knows it."""
