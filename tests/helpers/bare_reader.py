"""Runs an exported file in a process that can import jax, flatbuffers, numpy, sentencepiece, safetensors and Pillow."""

import os
import pathlib
import subprocess
import sys
from collections.abc import Mapping, Sequence

import numpy as np

import rahf

_READER = """
import sys
ALLOWED = set(sys.stdlib_module_names) | {
    "rahf", "jax", "jaxlib", "flatbuffers", "numpy", "sentencepiece", "safetensors", "PIL",
    "scipy", "ml_dtypes", "opt_einsum",  # these three jax itself needs
    "_sentencepiece",
}
class Only:
    # A finder that finds only the allowed packages.
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
import rahf
critic = rahf.load(file)
import numpy as np, jax
data = np.load(pictures)
prompts = [str(p) for p in data["prompts"]]
images = [data["first"], data["second"]]
prediction = critic(images, prompts, batch_size=2, progress=True)
feedback = critic.feedback(images, prompts, batch_size=2)
feedback[0].show(), feedback[0].to_json(), feedback[0]._repr_html_()
ids, mask = critic.tokens(prompts[0])
pixels = data["first"].astype(np.float32) / 255
gradient = jax.grad(lambda x: critic.scores(x, ids, mask).sum())(pixels)
np.savez(out, **prediction._asdict(), gradient=gradient)
absent = {"flax", "orbax", "tensorflow_datasets", "grain", "transformers", "jaxtyping", "rich", "simplejpeg",
          "tokenizers", "jinja2", "markupsafe"}
assert not absent & set(sys.modules)
"""


def read(
    file: pathlib.Path, pictures: Sequence[np.ndarray], prompts: Sequence[str], folder: pathlib.Path
) -> Mapping[str, np.ndarray]:
    """Predictions of two pictures and the gradient of the first one.

    Args:
      file: the exported model.
      pictures: two.
      prompts: two.
      folder: for temporary files.
    """
    inputs, out, script = folder / "inputs.npz", folder / "out.npz", folder / "reader.py"
    np.savez(inputs, first=pictures[0], second=pictures[1], prompts=prompts)
    script.write_text(_READER)
    root = str(pathlib.Path(rahf.__file__).resolve().parents[1])
    process = subprocess.run(
        [sys.executable, str(script), str(file), str(inputs), str(out)],
        capture_output=True, text=True, timeout=600, env=os.environ | {"PYTHONPATH": root, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    return np.load(out)
