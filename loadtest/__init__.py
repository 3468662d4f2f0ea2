"""``deqlm loadtest``: what a server bears, measured as its users would see it."""
