"""Tokenizers: white-space separated words, and sentencepiece. Import from the modules."""
