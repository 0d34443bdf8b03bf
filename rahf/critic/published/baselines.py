"""Published weights for the baselines: towers of a network to train, and models that need no training."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
from typing import Any

import rahf
from rahf import config as config_lib
from rahf.config import Config, DataConfig, FamilyConfig, ResNetBaselineConfig
from rahf.core import licenses
from rahf.core.batch import SCORES
from rahf.core.errors import PretrainedError
from rahf.critic.networks import build
from rahf.critic.published.richhf_torch import write_model
from rahf.nn import functional
from rahf.pretrained import clip, files, resnet
from rahf.pretrained import source as source_lib
from rahf.pretrained.source import Source
from rahf.text import Tokenizer, train_tokenizer

#: Where the vocabulary lies that PickScore and its own base, OpenCLIP's ViT-H/14, were trained with.
PICKSCORE_TOKENIZER = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"


def load(
    config: FamilyConfig, vision: str | os.PathLike | Source, revision: str | None = None
) -> tuple[functional.Params, Source]:
    """Reads the published part of a baseline.

    Args:
      config: of kind "resnet" or "clip", with the sizes and the normalisation of the checkpoint.
      vision: folder or hub id; of a ResNet also a file of torchvision's.
      revision: branch, tag or commit of a hub id.

    Returns:
      Parameters on the host: `resnet`, or all of CLIP but trained scores; and where they lie.

    Raises:
      PretrainedError: as the loaders; or another normalisation of pixels than the configured one.
    """
    found = _source(config.family, vision, revision)
    if isinstance(config, ResNetBaselineConfig):
        there = resnet.published(_weights(found))
        params: functional.Params = {"resnet": resnet.load(_weights(found), config.resnet)}
    else:
        there = clip.published(found).vision
        params = clip.load(found, config)
    source_lib.check_colours(found, there, config)
    return params, found


def _source(kind: str, name: str | os.PathLike | Source, revision: str | None) -> Source:
    if kind == "resnet" and not isinstance(name, Source) and pathlib.Path(name).is_file():
        return Source(pathlib.Path(name), os.fspath(name))
    return source_lib.locate(name, revision)


def _weights(found: Source) -> str | Source:
    """A file of torchvision's by its path, everything else as it is."""
    return str(found.folder) if found.folder.is_file() else found


def import_clip(
    name: str | os.PathLike,
    out: str | os.PathLike,
    *,
    scores: tuple[str, ...] = ("alignment",),
    heatmap: bool = True,
    license: str | None = None,
    tokenizer: str | os.PathLike | None = None,
    revision: str | None = None,
    format: str = "clip",
) -> pathlib.Path:
    """Turns a published CLIP into a model directory that every command accepts, without any training.

    Its cosine is mapped to [0,1] by (1 + cosine) / 2, which no correlation notices.

    Args:
      name: folder or hub id in the Hugging Face layout.
      out: directory to write; must not exist, or be empty.
      scores: those that the cosine stands for; all four for PickScore.
      heatmap: also give the gradient of the cosine as misalignment map.
      license: of the weights, as the user was told; None: what their model card says, else "unknown".
      tokenizer: folder or hub id of the vocabulary; None: the one beside the weights.
      revision: branch, tag or commit of a hub id.
      format: kind of weights, for the record.

    Returns:
      `out`.

    Raises:
      PretrainedError: `out` is taken; another family; tensors that are missing, extra, misshapen or not finite;
        or a vocabulary that is not this CLIP's.
    """
    out = _free(out)
    found = source_lib.locate(name, revision)
    there = clip.published(found)
    model = there.model(cosine_scores=scores, heatmap="gradient" if heatmap else "none")
    vocabulary = clip.tokenizer(found if tokenizer is None else tokenizer)
    check_vocabulary(model, vocabulary)
    params = clip.load(found, model)
    data = DataConfig(max_prompt_tokens=model.clip.text.positions)
    return _write(out, Config(workdir=str(out), data=data, model=model), params, vocabulary, found, license, format)


def import_pickscore(
    name: str | os.PathLike, out: str | os.PathLike, *, tokenizer: str | os.PathLike | None = None, **options: Any
) -> pathlib.Path:
    """PickScore (Kirstain et al. 2023): a CLIP ViT-H/14 whose scaled cosine was trained to agree with preferences.

    Its one number stands for each of the four scores, as in the paper's table. Options as of `import_clip`;
    `tokenizer` None: the one beside the weights if there is one, else `PICKSCORE_TOKENIZER`.
    """
    if tokenizer is None:
        found = source_lib.locate(name, options.get("revision"))
        beside = any((found.folder / file).is_file() for file in ("tokenizer.json", "vocab.json"))
        tokenizer = None if beside else PICKSCORE_TOKENIZER
    return import_clip(name, out, scores=SCORES, heatmap=False, tokenizer=tokenizer, format="pickscore", **options)


def import_resnet(
    name: str | os.PathLike,
    out: str | os.PathLike,
    *,
    config: str = "configs/critic/baseline_resnet50.py",
    license: str | None = None,
    revision: str | None = None,
) -> pathlib.Path:
    """Turns a published ResNet into a model directory; its heads are random, and say nothing before training.

    Args:
      name: folder or hub id in the layout of ``microsoft/resnet-50``, or torchvision's state dict.
      out: directory to write; must not exist, or be empty.
      config: config file that says the heads and the size of the images.
      license, revision: as of `import_clip`.

    Returns:
      `out`.

    Raises:
      PretrainedError: as of `import_clip`.
    """
    out = _free(out)
    found = _source("resnet", name, revision)
    there = resnet.published(_weights(found))
    base = config_lib.load(config)
    model = dataclasses.replace(base.model, resnet=there.resnet, image_mean=there.image_mean, image_std=there.image_std)
    params, _ = load(model, _weights(found))
    params = functional.init(build.build(model), base.train.seed, given=params)
    vocabulary = Tokenizer(train_tokenizer(["the network reads no text"]))
    made = dataclasses.replace(base, workdir=str(out), model=model)
    return _write(out, made, params, vocabulary, found, license, "resnet", untrained="heatmap and score heads")


def check_vocabulary(model: FamilyConfig, tokenizer: Tokenizer) -> None:
    """Raises PretrainedError, naming both sizes, if a vocabulary cannot be the network's."""
    from rahf.critic import families

    problem = families.vocabulary_problem(model, tokenizer)
    if problem is None and tokenizer.vocab_size != model.clip.text.vocab_size:
        problem = (
            f"the vocabulary {tokenizer.source} has {tokenizer.vocab_size} pieces, the network's embedding "
            f"{model.clip.text.vocab_size} rows: it does not belong to this network"
        )
    if problem:
        raise PretrainedError(problem)


def _free(out: str | os.PathLike) -> pathlib.Path:
    out = pathlib.Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise PretrainedError(f"{out}: exists already; choose another directory or remove it")
    return out


def _write(
    out: pathlib.Path,
    config: Config,
    params: functional.Params,
    tokenizer: Tokenizer,
    found: Source,
    license: str | None,
    format: str,
    **more: str,
) -> pathlib.Path:
    record = {
        "license": license or licenses.folder_license(found.folder),
        "source": found.name,
        "revision": found.revision,
        "sha256": _hashes(found),
        "format": format,
        "parameters": functional.count(params),
        "rahf": rahf.__version__,
    }
    write_model(out, config, params, tokenizer, record | more)
    return out


def _hashes(found: Source) -> dict[str, str]:
    """SHA-256 of every file that weights were read from."""
    if found.folder.is_file():
        weights = [found.folder]
    else:
        weights = [found.folder / name for name in sorted({s.file for s in files.open_folder(found).values()})]
    hashes = {}
    for file in weights:
        with open(file, "rb") as stream:
            hashes[file.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return hashes
