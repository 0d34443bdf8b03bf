"""Augsal: saliency and image properties read out of a diffusion model's features, and edits of known direction."""
