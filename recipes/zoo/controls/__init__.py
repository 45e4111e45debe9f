"""The zoo's control models: an interaction model, MIGC and an image prompt, on the frozen base of scenes."""
