"""Controls that are attached to a shared Stable Diffusion 1.x U-Net: interactions, layouts and image prompts."""
