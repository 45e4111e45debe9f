"""Where every tensor of a diffusers model lies in files of the original codes (LDM, SGM, BFL, SD3, OpenCLIP)."""
