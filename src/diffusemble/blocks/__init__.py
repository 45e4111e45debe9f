"""Denoisers as sequences of named blocks."""
