"""Where the programs of benchmarks/ are."""

import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[2]
