"""Text to image: latent diffusion (Rombach et al. 2022) from scratch."""
