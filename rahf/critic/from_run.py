"""A critic from a run directory or a checkpoint of it."""

from __future__ import annotations

import os
import pathlib
from typing import Any

from rahf.core import errors, licenses, process
from rahf.core.files import read_regular
from rahf.critic import families, provenance
from rahf.critic.critic import Critic
from rahf.critic.networks import build
from rahf.critic.provenance import Quantiles
from rahf.training import label_counts, saved_model


def load(path: str | os.PathLike, *, dtype: Any = None, name_from_config: bool = False) -> Critic:
    """Loads a run directory or one checkpoint; see `rahf.critic.load`.

    Args:
      name_from_config: name the critic after the folder that it was trained in instead of the folder that it lies in: a
        cache calls that after a commit. Its id always has the former name.
    """
    process.claim()
    saved = saved_model.find(path, dtype)
    config, run = saved.config, saved.run
    if not families.is_critic(config.model):
        raise errors.CheckpointError(f"{run}: a {config.model.family} model, no critic; load it with rahf.load")
    params = saved.params(build.build(config.model))
    tokenizer = saved.tokenizer(lambda tokenizer: families.vocabulary_problem(config.model, tokenizer))
    quantiles, weights = _quantiles(run), weight_license(run)
    return Critic(
        config,
        params,
        tokenizer,
        provenance.run_name(config) if name_from_config else run.name,
        saved.step,
        describe=lambda critic: provenance.critic_provenance(critic, weights, quantiles),
        outputs=families.outputs(config.model).learnt(label_counts.read(run)),
    )


def _quantiles(run: pathlib.Path) -> Quantiles | None:
    file = run / provenance.QUANTILES_FILE
    try:
        return Quantiles.from_json(read_regular(file))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise errors.CheckpointError(f"{file}: {error}") from error


def weight_license(run: pathlib.Path) -> str:
    """Licenses of the weights that a model started from. Weights trained from scratch carry no third-party license."""
    return "; ".join(sorted(set(licenses.model_licenses(run).values()))) or provenance.UNSPECIFIED
