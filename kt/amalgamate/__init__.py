"""Knowledge amalgamation: several teachers with classes of their own, one student for all of them. Source: CFL."""
