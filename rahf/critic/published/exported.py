"""An exported file, such as a critic that comes with rahf → a model directory, from which training can start.

An export holds all parameters that predictions need. What only learning needs, the head that names what is shown
(`model.tag_head`), is not among them: the directory's config leaves it out.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib

import jax
import numpy as np

from rahf.core import shipped
from rahf.core.errors import PretrainedError
from rahf.core.version import __version__
from rahf.critic.export import read
from rahf.critic.loading import is_exported
from rahf.critic.networks import build
from rahf.nn import functional
from rahf.pretrained import strict
from rahf.training.model_folder import check_free, write_model

_ONLY_FOR_LEARNING = "tags"


def import_exported(file: str | os.PathLike, out: str | os.PathLike) -> pathlib.Path:
    """Turns an exported file into a model directory that `rahf train --start.model` and every other command accept.

    Args:
      file: of `rahf export`, or the name of a critic that comes with rahf.
      out: directory to write; must not exist, or be empty.

    Returns:
      `out`.

    Raises:
      PretrainedError: `out` is not empty, `file` is no exported file, or one of scores only, which lacks parameters.
      ExportError: it was changed, or is too new for this version.
    """
    folder = check_free(out)
    path = shipped.resolve(file)
    if not is_exported(path):
        raise PretrainedError(f"{file}: no exported file; a run directory can be started from as it is")
    critic = read.read_export(path)
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), critic.params)
    config = critic.config
    shapes = functional.abstract(build.build(config.model))[1]
    if _ONLY_FOR_LEARNING in shapes and _ONLY_FOR_LEARNING not in params:
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, tag_head=False))
        shapes = functional.abstract(build.build(config.model))[1]
    strict.check_complete(params, shapes, str(file))
    record = {
        "source": critic.model_id,
        "license": critic.provenance.weight_license,
        "exported": pathlib.PurePath(path).name,
        "imported_with": f"rahf {__version__}",
    }
    unlearnt = critic.outputs.not_learnt
    labels = {name: 0 if name in unlearnt else None for name in (*critic.outputs.label_names, *unlearnt)}
    write_model(folder, config, params, critic.tokenizer, record, labels)
    return folder
