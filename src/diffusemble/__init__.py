"""Many diffusion models, one picture."""
