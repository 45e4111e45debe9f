"""Scenes of things in boxes, and measures of how well a picture shows one; no detector is needed on plain paper."""
