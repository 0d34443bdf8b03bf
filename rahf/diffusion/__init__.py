"""A small text-to-image diffusion model of our own, in pixels: what guidance, repair and selection are shown
with.

    rahf train configs/diffusion/demo.py

    generator = rahf.diffusion.load("runs/demo_diffusion")
    made = generator(["a red circle left of a blue square"], seeds=[0], energy=energy.score(critic, ...,
      "overall"))
"""

from __future__ import annotations

from rahf.diffusion.pixel_generator import Generator, load
from rahf.steer.painter import painter

__all__ = ["Generator", "load", "painter"]
