"""The critic inside other people's programs: PyTorch, pipelines of diffusers, trainers (TRL, flow_grpo).

JAX and PyTorch use the same GPU. Importing this package before JAX is used makes JAX take memory as it needs it, not
most of it at once (docs/export.md, "JAX beside PyTorch on one GPU").
"""

from rahf.core import process

process.share_gpu_memory()
