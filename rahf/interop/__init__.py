"""A critic inside other libraries: `rahf.interop.torch`, `rahf.interop.diffusers`. Neither is imported with this package."""
