"""A critic inside other libraries: `rahf.interop.torch` and `rahf.interop.diffusers`, imported by these names."""
