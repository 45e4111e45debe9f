"""Scenes for the zoo's control models: two to five things in boxes, with colours, a relation and a style."""
