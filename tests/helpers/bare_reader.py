"""Runs an exported file in a process that can import jax, numpy, sentencepiece, safetensors and Pillow alone."""

import os
import pathlib
import subprocess
import sys
from typing import Mapping, Sequence

import numpy as np

import rahf

_READER = """
import sys, time
ALLOWED = set(sys.stdlib_module_names) | {
    "rahf", "jax", "jaxlib", "numpy", "sentencepiece", "safetensors", "PIL",
    "scipy", "ml_dtypes", "opt_einsum",  # these three jax itself needs
    "_sentencepiece",
}
class Only:
    # A finder that finds nothing but what is allowed.
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        top = name.split(".")[0]
        if top in ALLOWED or top.startswith("_sysconfigdata"):
            return self.finder.find_spec(name, path, target)
sys.meta_path[:] = [Only(finder) for finder in sys.meta_path]
file, pictures, out = sys.argv[1:]
started = time.process_time()
import rahf
critic = rahf.load(file)
took = time.process_time() - started
import numpy as np, jax
data = np.load(pictures)
prompts = [str(p) for p in data["prompts"]]
images = [data["first"], data["second"]]
found = critic(images, prompts, batch_size=2, progress=True)
feedback = critic.feedback(images, prompts, batch_size=2)
feedback[0].show(), feedback[0].to_json(), feedback[0]._repr_html_()
ids, mask = critic.tokens(prompts[0])
pixels = data["first"].astype(np.float32) / 255
gradient = jax.grad(lambda x: critic.scores(x, ids, mask).sum())(pixels)
np.savez(out, **found._asdict(), gradient=gradient, took=took)
absent = {"flax", "orbax", "tensorflow_datasets", "grain", "transformers", "jaxtyping", "rich", "simplejpeg",
          "tokenizers", "jinja2", "markupsafe"}
assert not absent & set(sys.modules) and "flatbuffers" not in sys.modules
"""


def read(
    file: pathlib.Path, pictures: Sequence[np.ndarray], prompts: Sequence[str], folder: pathlib.Path
) -> Mapping[str, np.ndarray]:
    """Its predictions of two pictures, the first one's gradient, and processor seconds to load; `folder` is scratch."""
    given, out, script = folder / "given.npz", folder / "out.npz", folder / "reader.py"
    np.savez(given, first=pictures[0], second=pictures[1], prompts=prompts)
    script.write_text(_READER)
    root = str(pathlib.Path(rahf.__file__).resolve().parents[1])
    done = subprocess.run(
        [sys.executable, str(script), str(file), str(given), str(out)],
        capture_output=True, text=True, timeout=600, env=os.environ | {"PYTHONPATH": root, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return np.load(out)
