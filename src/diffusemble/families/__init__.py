"""Experts that differ, each called whole: what every architecture takes, and the text of all of them."""
