"""Surfaces: they parse, call and print."""
