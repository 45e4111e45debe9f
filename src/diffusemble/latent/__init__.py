"""Several models draw one picture by sharing their latents in the first steps (AMDM, arXiv 2410.01262)."""
