"""Ensembles that stand in the place of one denoiser: at every block, or at the output."""
