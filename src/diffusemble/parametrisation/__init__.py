"""What a denoiser predicts, and on which path from picture to noise: exact translations."""
