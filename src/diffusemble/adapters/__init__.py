"""What stands around a denoiser: ControlNets, image prompts, FreeU, guidance, a second stage."""
