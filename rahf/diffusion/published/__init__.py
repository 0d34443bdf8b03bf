"""Published pipelines of Stable Diffusion: read from the folders of `diffusers`, and written back."""
