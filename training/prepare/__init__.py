"""Texts made into folders of tokens that training maps into memory. Import from the modules."""
