"""``deqlm report``: one page, to be read without a network, of what runs have logged."""
