"""What can be put on top of an expert: LoRA and LyCORIS files, textual inversions, another VAE."""
