"""Data sets: from labels and pictures to prepared records, and from records to batches."""

from rahf.core import former_names
from rahf.core.lazy import attach

__getattr__ = former_names.attributes(__name__, attach(__name__, {})[0])
former_names.install()
