"""The page of a run: HTML that needs nothing but itself, neither network nor script."""
