"""Experts: loading, comparing, and encoding text for each of them."""
