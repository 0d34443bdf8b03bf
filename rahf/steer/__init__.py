"""What feedback is for: masks to repair, candidates to select, energies that guide a diffusion model."""
