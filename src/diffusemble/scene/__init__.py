"""Scenes: things in boxes, what they do to each other, a picture to be like, and the models that draw them together."""
