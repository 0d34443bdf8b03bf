"""`rahf import stable-diffusion`: the folder of a published pipeline becomes a model directory."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from rahf.config import Config, DataConfig, StableDiffusionConfig
from rahf.core import licenses
from rahf.core.errors import ConfigError, PretrainedError, TokenizerError
from rahf.core.tree import Params, count
from rahf.core.version import __version__
from rahf.diffusion import weights
from rahf.diffusion.networks.stable_diffusion import StableDiffusion, vae_scale_factor
from rahf.diffusion.published import configs
from rahf.nn import functional
from rahf.pretrained import files, source, strict
from rahf.pretrained.files import StoredTensor
from rahf.pretrained.source import WeightsSource
from rahf.text import ClipTokenizer
from rahf.text.byte_pairs import END
from rahf.text.vocabulary import load_clip_tokenizer
from rahf.training.model_folder import check_free, write_model

#: Pipelines whose networks are supported.
PIPELINES = (
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionXLInpaintPipeline",
)
#: Names of weights by part, without endings: safetensors, PyTorch.
STEMS = {
    "unet": ("diffusion_pytorch_model", "diffusion_pytorch_model"),
    "vae": ("diffusion_pytorch_model", "diffusion_pytorch_model"),
    "text_encoder": ("model", "pytorch_model"),
    "text_encoder_2": ("model", "pytorch_model"),
}
_BESIDE = ("model_index.json", "README.md", "*/config.json", "scheduler/*.json", "tokenizer/*", "tokenizer_2/*")


class Imported(NamedTuple):
    """Where a pipeline was written to, and what of it is not as published."""

    folder: pathlib.Path
    notes: tuple[str, ...]


def import_stable_diffusion(
    name: str | os.PathLike,
    out: str | os.PathLike,
    *,
    license: str | None = None,
    revision: str | None = None,
    variant: str | None = None,
) -> Imported:
    """Turns a published pipeline of Stable Diffusion 1.x, 2.x, inpainting or XL into a model directory.

    Args:
      name: folder in the layout of `diffusers` (``model_index.json``), or a hub id.
      out: directory to write; must not exist, or be empty.
      license: of the weights, as the user states it; None: what their model card states, else "unknown".
      revision: branch, tag or commit of a hub id.
      variant: of the weights, such as "fp16"; None: full precision, else fp16.

    Raises:
      PretrainedError: `out` is not empty; no such pipeline, or one of another kind; a part is missing; tensors that are
        missing, extra, misshapen or not finite; or vocabularies that do not fit.
    """
    out = check_free(out)
    variants = ("", "fp16") if variant is None else (variant,)
    located = _locate(name, revision, variants)
    model, index, notes = read_config(located)
    tokenizer, pads = _tokenizers(located.folder, model)
    model = dataclasses.replace(model, pad_token_ids=pads)
    opened = {part: _open(located.folder / part, part, variants) for part in _parts(model)}
    params = _params(opened, model, located.folder)
    record = {
        "license": license or licenses.folder_license(located.folder),
        "source": located.name,
        "revision": located.revision,
        "sha256": _hashes(located.folder, opened),
        "format": "diffusers",
        "pipeline": index["_class_name"],
        "parameters": count(params),
        "notes": list(notes),
        "rahf": __version__,
    }
    data = DataConfig(max_prompt_tokens=model.text_encoder.positions)
    write_model(out, Config(workdir=str(out), data=data, model=model), params, tokenizer, record)
    return Imported(out, notes)


def read_config(located: WeightsSource) -> tuple[StableDiffusionConfig, dict[str, Any], tuple[str, ...]]:
    """The config of a pipeline's networks and scheduler (not yet its padding), `model_index.json`, and notes.

    Raises:
      PretrainedError: no pipeline, one of another kind, or a part that is missing or not supported.
    """
    folder = located.folder
    index = _index(folder)
    second = index.get("text_encoder_2", [None])[0] is not None
    expected = ["unet", "vae", "text_encoder", "tokenizer", "scheduler"]
    expected += ["text_encoder_2", "tokenizer_2"] if second else []
    missing = [part for part in expected if not (folder / part).is_dir()]
    if missing:
        there = ", ".join(sorted(p.name for p in folder.iterdir() if p.is_dir())) or "no folders"
        raise PretrainedError(
            f"{folder}: half a pipeline: {', '.join(missing)} missing, found {there}; download the whole repository"
        )

    def read(part: str, name: str = "config.json") -> tuple[dict[str, Any], str]:
        return source.read_json(folder / part / name), str(folder / part / name)

    scheduler = configs.scheduler(*read("scheduler", "scheduler_config.json"))
    unet_json, vae_json = read("unet"), read("vae")
    fields: dict[str, Any] = {}
    if second:
        fields["text_encoder_2"] = configs.text_encoder(*read("text_encoder_2"))
        fields["text_projection_dim"] = read("text_encoder_2")[0].get("projection_dim", 512)
        fields["pad_token_ids"] = (0, 0)
    if vae_json[0].get("_class_name") == "AutoencoderTiny":
        fields |= {"vae": None, "vae_tiny": configs.tiny_vae(*vae_json)}
    else:
        fields["vae"] = configs.vae(*vae_json)
    model = StableDiffusionConfig(
        unet=configs.unet(*unet_json),
        text_encoder=configs.text_encoder(*read("text_encoder")),
        scheduler=scheduler.config,
        force_zeros_for_empty_prompt=bool(index.get("force_zeros_for_empty_prompt", second)) and second,
        **fields,
    )
    sample_size = unet_json[0].get("sample_size") or 64
    cells = max(sample_size) if isinstance(sample_size, (list, tuple)) else sample_size
    model = dataclasses.replace(model, image_size=cells * vae_scale_factor(model))
    notes = ()
    if scheduler.replaced:
        notes = (f"scheduler {scheduler.replaced} is not supported: DDIM over the same noise takes its place",)
    return model, index, notes


def _index(folder: pathlib.Path) -> dict[str, Any]:
    file = folder / "model_index.json"
    if not file.is_file():
        names = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        raise PretrainedError(
            f"{folder}: no pipeline of diffusers: expected model_index.json and the parts that it names, found {names}"
        )
    index = source.read_json(file)
    if index.get("_class_name") not in PIPELINES:
        raise PretrainedError(
            f"{file}: a {index.get('_class_name')}, expected Stable Diffusion: {', '.join(PIPELINES)}"
        )
    return index


def _locate(name: str | os.PathLike, revision: str | None, variants: tuple[str, ...]) -> WeightsSource:
    """The folder, or the download of the configs and of the first variant of the weights that there is."""
    if pathlib.Path(name).is_dir():
        return source.locate(name, revision)
    located = source.locate(name, revision, _BESIDE, "the folder of a pipeline of diffusers, with model_index.json")
    index = _index(located.folder)
    for part, (safe, pickled) in STEMS.items():
        if index.get(part, [None])[0] is None:
            continue
        for variant in variants:
            named = f".{variant}" if variant else ""
            safetensors, torch = (
                [f"{part}/{stem}{named}.{end}", f"{part}/{stem}{named}-*-of-*.{end}", f"{part}/{stem}.*index*.json"]
                for stem, end in ((safe, "safetensors"), (pickled, "bin"))
            )
            if any(_downloaded(name, located, patterns) for patterns in (safetensors, torch)):
                break
    return located


def _downloaded(name: str | os.PathLike, located: WeightsSource, patterns: list[str]) -> bool:
    """Downloads files of a part; whether any weights were among them."""
    source.locate(name, located.revision, only=patterns)
    return any(True for pattern in patterns[:2] for _ in located.folder.glob(pattern))


def _parts(model: StableDiffusionConfig) -> list[str]:
    return [part for part in STEMS if part != "text_encoder_2" or model.text_encoder_2 is not None]


def _open(folder: pathlib.Path, part: str, variants: tuple[str, ...]) -> dict[str, StoredTensor]:
    return files.open_stem(folder, *STEMS[part], variants)


def _params(
    opened: Mapping[str, Mapping[str, StoredTensor]], model: StableDiffusionConfig, folder: pathlib.Path
) -> Params:
    """All parameters, on the host; each part must be filled exactly."""
    try:
        _, shapes = functional.abstract(lambda: StableDiffusion(model))
    except ConfigError as error:
        raise PretrainedError(f"{folder}: its parts do not fit each other: {error}") from error
    params: Params = {}
    layout = weights.pointwise(model.unet.use_linear_projection)
    for part, tensors in opened.items():
        taker = strict.Taker(tensors, str(folder / part))
        if part == "text_encoder_2":
            params[part], params["text_projection"] = weights.take_text(
                taker, model.text_encoder_2, model.text_projection_dim
            )
        elif part == "text_encoder":
            params[part], _ = weights.take_text(taker, model.text_encoder)
        else:
            params[part] = weights.take(taker, shapes[part], layout)
        taker.finish()
    strict.check_complete(params, shapes, str(folder))
    return params


def _tokenizers(folder: pathlib.Path, model: StableDiffusionConfig) -> tuple[ClipTokenizer, tuple[int, ...]]:
    """The vocabulary, and the id that each tower's prompts are padded with."""
    names = ["tokenizer", "tokenizer_2"][: len(model.pad_token_ids)]
    try:
        tokenizers = [load_clip_tokenizer(folder / name) for name in names]
    except (OSError, TokenizerError) as error:
        raise PretrainedError(f"{folder}: {error}") from error
    for name, tokenizer, tower in zip(names, tokenizers, (model.text_encoder, model.text_encoder_2)):
        if tokenizer.vocab_size > tower.vocab_size:
            raise PretrainedError(
                f"{folder / name}: {tokenizer.vocab_size} pieces, but the text tower's embedding has {tower.vocab_size}"
            )
        if any(tokenizer.encode(text) != tokenizers[0].encode(text) for text in ("a red cat", "1/2 Öl")):
            raise PretrainedError(f"{folder / name}: cuts texts otherwise than tokenizer; expected the same vocabulary")
    return tokenizers[0], tuple(_pad(folder / name, tokenizer) for name, tokenizer in zip(names, tokenizers))


def _pad(folder: pathlib.Path, tokenizer: ClipTokenizer) -> int:
    """The padding's id: the end token, or what the vocabulary's files name (Stable Diffusion 2: "!")."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            token = source.read_json(folder / name).get("pad_token")
            token = token.get("content") if isinstance(token, dict) else token
            if token is not None:
                number = tokenizer.token_id(token)
                if number is None:
                    raise PretrainedError(f"{folder / name}: pad_token {token!r} is not in the vocabulary")
                return number
    return tokenizer.token_id(END)


def _hashes(folder: pathlib.Path, opened: Mapping[str, Mapping[str, StoredTensor]]) -> dict[str, str]:
    """SHA-256 of every file that weights were read from."""
    names = sorted({f"{part}/{tensor.file}" for part, tensors in opened.items() for tensor in tensors.values()})
    hashes = {}
    for name in names:
        with open(folder / name, "rb") as stream:
            hashes[name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return hashes
