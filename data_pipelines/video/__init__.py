"""Motion: spectral volumes of real videos, and of drawn scenes whose flow is known exactly."""
