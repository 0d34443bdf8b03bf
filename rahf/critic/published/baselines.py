"""Published weights of the baselines turned into model directories: models that need no training, and starts."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
from typing import Any

from rahf.config import ClipBaselineConfig, ClipConfig, Config, DataConfig
from rahf.config import load as load_config
from rahf.core import licenses
from rahf.core.batch import SCORES
from rahf.core.errors import PretrainedError
from rahf.core.version import __version__
from rahf.critic import families, towers
from rahf.critic.networks import build
from rahf.nn import functional
from rahf.pretrained import clip, files, open_clip, resnet, source
from rahf.pretrained.clip import PublishedClip
from rahf.pretrained.source import WeightsSource
from rahf.text import Tokenizer, train_tokenizer
from rahf.training.model_folder import check_free, write_model

#: Where the vocabulary lies that PickScore, HPS v2 and their base, OpenCLIP's ViT-H/14, were trained with.
PICKSCORE_TOKENIZER = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
#: Files of the versions of HPS v2 where it is published.
HPSV2_FILES = {"2.0": "HPS_v2_compressed.pt", "2.1": "HPS_v2.1_compressed.pt"}


def clip_model(published: PublishedClip, **fields: Any) -> ClipBaselineConfig:
    """The configuration of a network around a published CLIP; `fields` are those of `ClipConfig`."""
    return ClipBaselineConfig(
        image_size=published.vision.image_size,
        vit=published.vision.vit,
        clip=ClipConfig(text=published.text, width=published.width, **fields),
        image_mean=published.vision.image_mean,
        image_std=published.vision.image_std,
    )


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

    Its cosine is mapped to [0,1] by (1 + cosine) / 2, which changes no correlation.

    Args:
      name: folder or hub id in the Hugging Face layout.
      out: directory to write; must not exist, or be empty.
      scores: those that the cosine stands for; all four for PickScore.
      heatmap: also give the gradient of the cosine as misalignment map.
      license: of the weights, as the user states it; None: what their model card states, else "unknown".
      tokenizer: folder or hub id of the vocabulary; None: the one beside the weights.
      revision: branch, tag or commit of a hub id.
      format: kind of weights, for the record.

    Returns:
      `out`.

    Raises:
      PretrainedError: `out` is not empty; another family; tensors that are missing, extra, misshapen or not finite;
        or a vocabulary that is not this CLIP's.
    """
    out = check_free(out)
    weights = source.locate(name, revision)
    model = clip_model(clip.published_clip(weights), cosine_scores=scores, heatmap="gradient" if heatmap else "none")
    vocabulary = clip.published_clip_tokenizer(weights if tokenizer is None else tokenizer)
    check_clip_vocabulary(model, vocabulary)
    params, _ = towers.load_backbone(model, weights)
    _write_clip(out, model, params, vocabulary, _record(weights, params, license, format))
    return out


def _write_clip(
    out: pathlib.Path, model: ClipBaselineConfig, params: functional.Params, vocabulary: Tokenizer, record: dict
) -> None:
    data = DataConfig(max_prompt_tokens=model.clip.text.positions)
    write_model(out, Config(workdir=str(out), data=data, model=model), params, vocabulary, record)


def import_pickscore(
    name: str | os.PathLike, out: str | os.PathLike, *, tokenizer: str | os.PathLike | None = None, **options: Any
) -> pathlib.Path:
    """PickScore (Kirstain et al. 2023): a CLIP ViT-H/14 whose scaled cosine was trained to agree with preferences.

    Its one number stands for each of the four scores, as in the paper's table. Options as of `import_clip`;
    `tokenizer` None: the one beside the weights if there is one, else `PICKSCORE_TOKENIZER`.
    """
    if tokenizer is None:
        folder = source.locate(name, options.get("revision")).folder
        beside = any((folder / file).is_file() for file in ("tokenizer.json", "vocab.json"))
        tokenizer = None if beside else PICKSCORE_TOKENIZER
    return import_clip(name, out, scores=SCORES, heatmap=False, tokenizer=tokenizer, format="pickscore", **options)


def import_hpsv2(
    name: str | os.PathLike,
    out: str | os.PathLike,
    *,
    version: str = "2.1",
    vit_heads: int | None = None,
    license: str | None = None,
    tokenizer: str | os.PathLike | None = None,
    revision: str | None = None,
) -> pathlib.Path:
    """HPS v2 (Wu et al. 2023): OpenCLIP's ViT-H/14, trained on preferences, in OpenCLIP's layout.

    Its one number stands for each of the four scores, as PickScore's. Numbers of versions are not comparable.

    Args:
      name: the published file, read by PyTorch's weights-only reader (or safetensors); or a folder or hub id
        (``xswu/HPSv2``) that holds it.
      out: directory to write; must not exist, or be empty.
      version: "2.0" or "2.1": which file of a folder or hub id.
      vit_heads: see `rahf.pretrained.open_clip.published_open_clip`.
      license: of the weights, as the user states it; None: what the model card of a folder or hub id states.
      tokenizer: folder or hub id of the vocabulary; None: `PICKSCORE_TOKENIZER`.
      revision: branch, tag or commit of a hub id.

    Returns:
      `out`.

    Raises:
      PretrainedError: as of `import_clip`; an unknown version.
    """
    if version not in HPSV2_FILES:
        raise PretrainedError(f"version: expected one of {', '.join(HPSV2_FILES)}, found {version!r}")
    out = check_free(out)
    weights = open_clip.locate(name, HPSV2_FILES[version], revision)
    model = clip_model(open_clip.published_open_clip(weights, vit_heads), cosine_scores=SCORES, heatmap="none")
    vocabulary = clip.published_clip_tokenizer(PICKSCORE_TOKENIZER if tokenizer is None else tokenizer)
    check_clip_vocabulary(model, vocabulary)
    params = open_clip.load_open_clip(weights, model.vit, model.clip.text, model.clip.width, model.image_size)
    if license is None and not pathlib.Path(name).is_file():
        license = licenses.folder_license(weights.folder.parent)
    _write_clip(out, model, params, vocabulary, _record(weights, params, license, "hpsv2"))
    return out


def import_resnet(
    name: str | os.PathLike,
    out: str | os.PathLike,
    *,
    config: str = "configs/critic/baseline_resnet50.py",
    license: str | None = None,
    revision: str | None = None,
) -> pathlib.Path:
    """Turns a published ResNet into a model directory to train from. Its heads are random: it predicts nothing yet.

    Args:
      name: folder or hub id in the layout of ``microsoft/resnet-50``, or torchvision's state dict.
      out: directory to write; must not exist, or be empty.
      config: config file that describes the heads and the size of the images.
      license, revision: as of `import_clip`.

    Returns:
      `out`.

    Raises:
      PretrainedError: as of `import_clip`.
    """
    out = check_free(out)
    weights = resnet.locate_resnet(name, revision)
    published = resnet.published_resnet(weights)
    base = load_config(config)
    model = dataclasses.replace(base.model, **published._asdict())
    params, _ = towers.load_backbone(model, weights)
    params = functional.init(build.build(model), base.train.seed, loaded=params)
    vocabulary = Tokenizer(train_tokenizer(["the network reads no text"]))
    record = _record(weights, params, license, "resnet") | {"untrained": "heatmap and score heads"}
    labels = dict.fromkeys(families.outputs(model).label_names, 0)
    write_model(out, dataclasses.replace(base, workdir=str(out), model=model), params, vocabulary, record, labels)
    return out


def check_clip_vocabulary(model: ClipBaselineConfig, tokenizer: Tokenizer) -> None:
    """Raises PretrainedError, naming both sizes, if a vocabulary cannot be the network's."""
    problem = families.vocabulary_problem(model, tokenizer)
    if problem is None and tokenizer.vocab_size != model.clip.text.vocab_size:
        problem = (
            f"the vocabulary {tokenizer.source} has {tokenizer.vocab_size} pieces, the network's embedding "
            f"{model.clip.text.vocab_size} rows: it does not belong to this network"
        )
    if problem:
        raise PretrainedError(problem)


def _record(weights: WeightsSource, params: functional.Params, license: str | None, format: str) -> dict[str, Any]:
    """The content of `model.json`."""
    return {
        "license": license or licenses.folder_license(weights.folder),
        "source": weights.name,
        "revision": weights.revision,
        "sha256": _hashes(weights),
        "format": format,
        "parameters": functional.count(params),
        "rahf": __version__,
    }


def _hashes(weights: WeightsSource) -> dict[str, str]:
    """SHA-256 of every file that weights were read from."""
    if weights.folder.is_file():
        paths = [weights.folder]
    else:
        names = {tensor.file for tensor in files.open_folder(weights).values()}
        paths = [weights.folder / name for name in sorted(names)]
    hashes = {}
    for path in paths:
        with open(path, "rb") as stream:
            hashes[path.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return hashes
