"""Which model gave a number. Every prediction carries it, so that numbers of different models are not mixed up.

No JAX here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import re
import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from rahf.config import Config
from rahf.core import json_text, labels, names, renamed
from rahf.core.batch import SCORES, Prediction
from rahf.core.errors import NotPredicted
from rahf.core.tree import Params, flatten
from rahf.images.decode import SQUARE
from rahf.text import SUFFIX, WORD_RULE, Tokenizer

if TYPE_CHECKING:  # readers of exported models work without jaxtyping
    from jaxtyping import Float

#: Name of the file of reference quantiles in a run directory and in an exported file.
QUANTILES_FILE = "quantiles.json"
#: Decimals of stored quantiles. Scores are rounded to as many before they are compared with them.
_DIGITS = 7
#: The license of weights about which nothing is recorded.
UNSPECIFIED = "not specified"
#: The end of a model's id; weights stored in 16 bits are others.
_WEIGHTS_HASH = re.compile(r"[0-9a-f]{12}(-bf16)?$")
#: Fields of a model's config that say how it is computed, and change neither parameters nor results.
_HOW_COMPUTED = ("compute_dtype", "attention", "remat", "scan_layers")


class ModelMismatch(UserWarning):
    """Scores of two models are compared. They have no common scale; percentiles of one reference set do."""


@dataclasses.dataclass(frozen=True)
class Quantiles:
    """Quantiles of the scores that a model gave on a reference set.

    Attributes:
      model: id of the model.
      reference: name of the reference set, for people.
      count: number of its examples.
      values: float [4,Q], ascending, at Q probabilities from 0 to 1 in equal steps.
    """

    model: str
    reference: str
    count: int
    values: tuple[tuple[float, ...], ...]

    @classmethod
    def from_scores(cls, scores: Float[np.ndarray, "n 4"], model: str, reference: str) -> Quantiles:
        """Takes 101 quantiles (0, 1, … 100%) of each score."""
        levels = np.quantile(np.asarray(scores, np.float64), np.linspace(0, 1, 101), axis=0)
        rows = tuple(tuple(round(float(v), _DIGITS) for v in row) for row in levels.T)
        return cls(model, reference, len(scores), rows)

    def percentiles(self, scores: Float[np.ndarray, "*b 4"]) -> Float[np.ndarray, "*b 4"]:
        """Share of the reference set below each score, float32 in 0..100; linear between quantiles.

        A score that many examples of the set share is above the examples that are lower, not above its equals.
        """
        scores = np.round(np.asarray(scores, np.float64), _DIGITS)
        return np.stack([_shares_below(scores[..., i], row) for i, row in enumerate(self.values)], -1)

    def to_json(self) -> str:
        """The content of `quantiles.json`."""
        values = dict(zip(SCORES, self.values))
        tree = {"model": self.model, "reference": self.reference, "count": self.count, "scores": values}
        return json.dumps(tree) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Quantiles:
        """The inverse of `to_json`. Raises ValueError: damaged."""
        try:
            tree = json_text.parse_object(text)
            rows = tuple(tuple(map(float, tree["scores"][name])) for name in SCORES)
            if len({len(row) for row in rows}) != 1 or len(rows[0]) < 2 or any(list(r) != sorted(r) for r in rows):
                raise ValueError("expected ascending rows of one length")
            if not np.isfinite(rows).all():
                raise ValueError("expected finite numbers")
            count = tree["count"]
            if not isinstance(count, int) or isinstance(count, bool) or not 0 < count < 1 << 63:
                raise ValueError(f"expected a count of examples, found {count!r:.40}")
            return cls(names.one_line(tree["model"]), names.one_line(tree["reference"]), count, rows)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"reference quantiles are damaged ({error!r:.200}); evaluate the model again") from error


def _shares_below(scores: np.ndarray, quantiles: tuple[float, ...]) -> np.ndarray:
    """Percent of the reference set below each score, from its quantiles in equal steps; NaN of NaN."""
    values, steps = np.asarray(quantiles), np.linspace(0, 100, len(quantiles))
    first, after = (np.searchsorted(values, scores, side) for side in ("left", "right"))
    shares = np.interp(scores, values, steps)
    # `np.interp` takes the last of equal quantiles. The examples below end one step before the first of them.
    shares = np.where(after - first > 1, steps[np.maximum(first - 1, 0)], shares)
    return shares.astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Where numbers come from.

    Attributes:
      model_id: name, step, and a hash of parameters, network and vocabulary. Two ids with one hash are one model.
      preprocessing_hash: hash of `describe_preprocessing`.
      weight_license: license of the weights.
      quantiles: of the scores on a reference set; None if the model was not evaluated.
    """

    model_id: str
    preprocessing_hash: str
    weight_license: str = UNSPECIFIED
    quantiles: Quantiles | None = None

    def percentiles(self, scores: Float[np.ndarray, "*b 4"]) -> Float[np.ndarray, "*b 4"] | None:
        """Share of the reference set below each score, 0..100; None without reference quantiles."""
        return None if self.quantiles is None else self.quantiles.percentiles(scores)

    @property
    def scale(self) -> tuple[str, str]:
        """What decides about the numbers: the hashes of the model and of the preprocessing, without any name."""
        return weights_hash(self.model_id), self.preprocessing_hash


def weights_hash(model_id: str) -> str:
    """The part of a model's id that its weights decide; the whole id where it has no such part.

    A model is its weights: it stays the same under another name, in another folder, or exported.
    """
    found = _WEIGHTS_HASH.search(model_id)
    return found[0] if found else model_id


def warn_if_different(models: Iterable[Provenance | None], stacklevel: int = 3) -> None:
    """Warns with `ModelMismatch` if the models or their preprocessing differ; None stands for an unknown model."""
    sources = {m.scale: m for m in models if m is not None}
    if len(sources) > 1:
        listed = " and ".join(sorted(f"{m.model_id} (preprocessing {m.preprocessing_hash})" for m in sources.values()))
        warnings.warn(
            f"scores of different models are compared: {listed}. They have no common scale; compare percentiles "
            "of one reference set, or score all images with one model.",
            ModelMismatch,
            stacklevel=stacklevel,
        )


class ScoreArray(np.ndarray):
    """A float array of scores with its model. Arithmetic with scores of another model warns with `ModelMismatch`."""

    provenance: Provenance | None

    def __new__(cls, values: np.ndarray, provenance: Provenance) -> ScoreArray:
        array = np.asarray(values).view(cls)
        array.provenance = provenance
        return array

    def __array_finalize__(self, source: Any) -> None:
        self.provenance = getattr(source, "provenance", None)

    def __reduce__(self):
        rebuild, arguments, state = super().__reduce__()
        return rebuild, arguments, (state, self.provenance)

    def __setstate__(self, state: Any) -> None:
        array_state, self.provenance = state
        super().__setstate__(array_state)

    def __deepcopy__(self, memo: Any) -> ScoreArray:
        return ScoreArray(_plain(self).copy(), self.provenance)

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **options):
        sources = [x.provenance for x in inputs if getattr(x, "provenance", None) is not None]
        warn_if_different(sources)
        if out is not None:
            getattr(ufunc, method)(*map(_plain, inputs), out=tuple(map(_plain, out)), **options)
            return out[0] if len(out) == 1 else out
        result = getattr(ufunc, method)(*map(_plain, inputs), **options)
        # The result of scores of two models belongs to neither.
        floats = isinstance(result, np.ndarray) and np.issubdtype(result.dtype, np.floating)
        same = len({source.scale for source in sources}) == 1
        return ScoreArray(result, sources[0]) if floats and same else result


def _plain(value: Any) -> Any:
    return value.view(np.ndarray) if isinstance(value, ScoreArray) else value


class CriticPrediction(Prediction):
    """A `Prediction` of a critic: the same three arrays, and the model that gave them.

    Attributes:
      provenance: of the model.
      percentiles: float32 [N,4] in 0..100, shares of the reference set below each score; None without one.
    """

    provenance: Provenance
    percentiles: np.ndarray | None

    def __new__(cls, heatmaps, scores, word_probabilities, provenance: Provenance | None = None) -> Prediction:
        """Without a provenance, that of the scores counts. If they have none (`jax.tree.map`), a `Prediction`."""
        provenance = provenance or getattr(scores, "provenance", None)
        if provenance is None:
            return Prediction(heatmaps, scores, word_probabilities)
        prediction = super().__new__(cls, heatmaps, ScoreArray(scores, provenance), word_probabilities)
        prediction.provenance = provenance
        prediction.percentiles = provenance.percentiles(scores)
        return prediction

    def __reduce__(self):
        return CriticPrediction, (self.heatmaps, _plain(self.scores), self.word_probabilities, self.provenance)

    def score(self, score: str | Mapping[str, float] = "overall") -> np.ndarray:
        """One score of every image, float32 [N], high = good; as `Prediction.score`.

        Raises:
          NotPredicted: the model does not predict the score, or one of those with a weight.
        """
        _check_predicted("score", score, super().score(score))
        return super().score(score)

    def heatmap(self, name: str) -> np.ndarray:
        """One heatmap of every image, float32 [N,H,W], high = bad; as `Prediction.heatmap`.

        Raises:
          NotPredicted: the model does not predict it.
        """
        _check_predicted("heatmap", name, super().heatmap(name))
        return super().heatmap(name)

    @property
    def model_id(self) -> str:
        """Name, step and hash of the model."""
        return self.provenance.model_id

    @property
    def preprocessing_hash(self) -> str:
        """Hash of the preprocessing of images and prompts."""
        return self.provenance.preprocessing_hash

    @property
    def weight_license(self) -> str:
        """License of the model's weights."""
        return self.provenance.weight_license


def _check_predicted(kind: str, name: Any, values: np.ndarray) -> None:
    """A critic's outputs are finite, or NaN because it does not predict them."""
    if np.isnan(values).any():
        raise NotPredicted(f"{kind}: the model of this prediction does not predict {name!r}; its values are NaN")


def describe_preprocessing(config: Config, tokenizer: Tokenizer) -> dict[str, Any]:
    """Everything that happens to an image and a prompt before the network, as plain data for JSON."""
    return {
        "pixels": {
            "range": [0.0, 1.0],
            "size": config.model.image_size,
            "square": SQUARE,
            "mean": list(config.model.image_mean),
            "std": list(config.model.image_std),
        },
        "words": {"rule": WORD_RULE, "suffix": SUFFIX, "most": config.data.max_words},
        "tokens": {
            "vocabulary_sha256": hashlib.sha256(tokenizer.model).hexdigest(),
            "prompt": config.data.max_prompt_tokens,
            "target": config.data.max_target_tokens,
        },
    }


def version_0_preprocessing(config: Config, tokenizer: Tokenizer) -> dict[str, Any]:
    """What version 0 wrote for `describe_preprocessing`. Its square of PNG files and of arrays was today's; JPEG files
    could have another one on each way."""
    description = describe_preprocessing(config, tokenizer)
    del description["pixels"]["square"]
    description["pixels"]["resize"] = "bilinear, antialiased, aspect ratio not kept"
    return description


def preprocessing_hash(description: Mapping[str, Any]) -> str:
    """Hashes the result of `describe_preprocessing` to 12 hexadecimal digits."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:12]


def model_id(config: Config, params: Params, tokenizer: Tokenizer, name: str, step: int | None) -> str:
    """Name, step, and a hash of parameters, network and vocabulary.

    Args:
      name: of the run, as its config says it (`run_name`): that of a folder would change with each copy.
    """
    steps = [] if step is None else [str(step)]
    return "-".join([name, *steps, _hash(config, params, tokenizer, _HOW_COMPUTED)])


def run_name(config: Config) -> str:
    """The name of the folder that a model was trained in, wherever it lies now."""
    return pathlib.PurePath(config.workdir).name or "model"


def _hash(config: Config, params: Params, tokenizer: Tokenizer, left_out: tuple[str, ...]) -> str:
    """12 hexadecimal digits. The fields `left_out` of the model count as if they had their defaults."""
    digest = hashlib.sha256(_network_fields(config, left_out).encode() + tokenizer.model)
    for path, leaf in flatten(params).items():
        digest.update(path.encode())
        digest.update(np.ascontiguousarray(leaf))
    return digest.hexdigest()[:12]


def _network_fields(config: Config, left_out: tuple[str, ...]) -> str:
    """The fields of a model that differ from their defaults, as JSON."""
    defaults = {field.name: field.default for field in dataclasses.fields(config.model)}
    model = dataclasses.replace(config.model, **{name: defaults[name] for name in left_out if name in defaults})
    fields = _without_defaults(model)
    if model.family != "critic":  # version 0 hashed this field under this name: its models keep their ids
        fields["kind"] = model.family
    return json.dumps(fields, sort_keys=True)


def id_seal(model_id: str, config: Config, weights: Mapping[str, Any], tokenizer: Tokenizer) -> str:
    """SHA-256 of a model's id together with its network, its vocabulary, and those weights that a file holds.

    Args:
      model_id: of the model that the weights were taken from.
      weights: arrays by path; they may be fewer or shorter than those that the id was computed from.
    """
    digest = hashlib.sha256()
    for text in (model_id, _network_fields(config, _HOW_COMPUTED)):
        digest.update(text.encode(errors="surrogatepass") + b"\0")
    digest.update(tokenizer.model)
    for path in sorted(weights):
        leaf = np.asarray(weights[path])
        digest.update(f"{path} {leaf.dtype.name} {leaf.shape}".encode())
        digest.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8))
    return digest.hexdigest()


def _without_defaults(config: Any) -> Any:
    """The fields that differ from their defaults. A field that a later version adds then leaves the hash as it is."""
    if not dataclasses.is_dataclass(config):
        return config
    pairs = [(field, getattr(config, field.name)) for field in dataclasses.fields(config)]
    changed = {field.name: _without_defaults(value) for field, value in pairs if value != field.default}
    return {name: value for name, value in changed.items() if value != {}}


def critic_provenance(critic: Any, weight_license: str = UNSPECIFIED, quantiles: Quantiles | None = None) -> Provenance:
    """Describes a critic from its parts.

    Args:
      critic: a `rahf.Critic`.
      weight_license: license of its weights.
      quantiles: of its scores on a reference set; those of another model are ignored.
    """
    name = model_id(critic.config, critic.params, critic.tokenizer, run_name(critic.config), critic.step)
    digest = preprocessing_hash(describe_preprocessing(critic.config, critic.tokenizer))
    if quantiles is not None and not is_id_of(quantiles.model, name, critic.config, critic.params, critic.tokenizer):
        quantiles = None
    return Provenance(name, digest, weight_license, quantiles)


def is_id_of(stored: str, current: str, config: Config, params: Params, tokenizer: Tokenizer) -> bool:
    """Whether a stored id names these weights, whatever the model was called.

    Args:
      stored: an id that was written earlier.
      current: the id of `model_id` for the other arguments.
    """
    if weights_hash(stored) == weights_hash(current):
        return True
    defaults = {field.name: field.default for field in dataclasses.fields(config.model)}
    if all(getattr(config.model, field, None) == defaults.get(field) for field in _HOW_COMPUTED[1:]):
        return False
    # Version 0 hashed how a model is computed, too, but for the dtype.
    return weights_hash(stored) == _hash(config, params, tokenizer, _HOW_COMPUTED[:1])


class NamedScores(dict):
    """Scores by name; an unknown name is answered with the nearest (`UnknownNameError`, which is a `KeyError`)."""

    def __missing__(self, name: str) -> float:
        labels.position("score", name, SCORES)
        raise KeyError(name)  # a name that exists, but not here


__getattr__ = renamed.moved(__name__, {"KnownPrediction": f"{__name__}:CriticPrediction"})
