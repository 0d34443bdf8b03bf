"""The texts for people in an exported file: its model card and its licenses."""

from __future__ import annotations

import importlib.metadata
from typing import Any

from rahf.config import ClipBaselineConfig, Config, ResNetBaselineConfig
from rahf.core.batch import HEATMAPS, SCORES
from rahf.critic import families
from rahf.critic.critic import Critic
from rahf.critic.provenance import Provenance

_METRICS = (
    *(f"scores/{name}/{kind}" for name in SCORES for kind in ("plcc", "srcc")),
    *(f"heatmaps/{name}/{kind}" for name in HEATMAPS for kind in ("mse", "cc", "auc_judd")),
    "keywords/f1",
    "keywords_constrained/f1",
)


def model_card(
    critic: Critic,
    manifest: dict[str, Any],
    origin: Provenance,
    metrics: dict[str, Any] | None,
    about: str | None = None,
) -> str:
    """The model card, Markdown.

    Args:
      critic: the model.
      manifest: entries of the manifest.
      origin: of the model.
      metrics: `metrics.json` of an evaluation: `metrics`, `intervals` and `meta`; None: not evaluated.
      about: what its author says of it, Markdown; None: nothing.
    """
    full = "predict" in manifest["functions"]
    config, outputs = critic.config, critic.outputs
    maps = outputs.heatmaps if full else ()
    side = config.model.image_size
    lines = [
        f"# {manifest['name']}: rich feedback on generated images",
        "",
        f"Given a picture and the prompt it was made from, this model gives {_gives(outputs, maps, full)}. Scores "
        f"({', '.join(outputs.scores)}) are in [0, 1], high = good"
        + (f"; heatmaps ({', '.join(maps)}) are in [0, 1], high = bad." if maps else ".")
        + _baseline(config, outputs)
        + (f" {outputs.note()[0].upper()}{outputs.note()[1:]}." if outputs.note() else ""),
        "",
        "```python",
        "import rahf",
        "",
        'critic = rahf.load("FILE.rahf")',
        'critic("picture.png", "a red cat").scores',
        "```",
        "",
        *(["## About", "", about.strip(), ""] if about else []),
        "## Intended use",
        "",
        ("As far as the text above says nothing narrower: ranking" if about else "Ranking")
        + ", filtering, masking and steering pictures of text-to-image models like those of its training data. "
        "It was not made to judge photographs, people, or whether a picture is harmful. Scores of other models or "
        "other preprocessing have another scale. Optimising pictures against it finds its blind spots: confirm gains "
        "with a model that took no part.",
        "",
        "## Model",
        "",
        f"- id `{origin.model_id}`, preprocessing `{origin.preprocessing_hash}`",
        f"- {manifest['weights']['count']:,} weights as {manifest['weights']['dtype']}, computing in "
        f"{config.model.compute_dtype}; pictures of {side} x {side} pixels, prompts of "
        f"{config.data.max_prompt_tokens} tokens",
        f"- functions {', '.join(sorted(manifest['functions']))} with first derivatives, for "
        f"{', '.join(manifest['platforms'])}; written by rahf {manifest['rahf']} with jax {manifest['jax']}",
        "",
        "## Data",
        "",
        _trained(config, manifest["step"]),
        *_reference(origin),
        "",
        "## Metrics",
        "",
        *(_measured(metrics) if metrics else ["Not evaluated before the export."]),
        "",
        "## Licenses",
        "",
        f"Weights: {origin.weight_license}. Program: Apache-2.0. See LICENSES.md.",
    ]
    return "\n".join(lines) + "\n"


def _gives(outputs: families.Outputs, maps: tuple[str, ...], full: bool) -> str:
    parts = [_count(len(outputs.scores), "score")]
    parts += [_count(len(maps), "heatmap")] if maps else []
    parts += ["a probability for each word"] if full and outputs.keywords else []
    if len(parts) == 1:
        return parts[0]
    return ", ".join(parts[:-1]) + (", and " if len(parts) > 2 else " and ") + parts[-1]


def _count(number: int, what: str) -> str:
    return f"{('no', 'one', 'two', 'three', 'four')[number]} {what}{'s' if number != 1 else ''}"


def _baseline(config: Config, outputs: families.Outputs) -> str:
    """Sentences about a baseline; "" of the other families."""
    if isinstance(config.model, ResNetBaselineConfig):
        return " It is a baseline that does not read the prompt and judges no words."
    if isinstance(config.model, ClipBaselineConfig):
        lacking = [name for name in SCORES if name not in outputs.scores]
        nan = f" What it does not predict ({', '.join(lacking)}) is NaN." if lacking else ""
        return f" It is a CLIP, a baseline that judges no words.{nan}"
    return ""


def _trained(config: Config, step: int | None) -> str:
    if step == 0:
        random_heads = isinstance(config.model, ResNetBaselineConfig)
        heads = " Its heads are random, and say nothing before training." if random_heads else ""
        return f"Published weights as they were imported: rahf did not train them.{heads}"
    steps = "an unknown number of" if step is None else step
    names = " and ".join(f"`{_name(path)}`" for path in config.data.paths)
    data = f"{names}, split `{config.data.train_split}`"
    return f"Trained on {data}, {steps} steps with batches of {config.data.batch_size}."


def _name(path: str) -> str:
    return path.rstrip("/").rsplit("/", 1)[-1]


def _reference(origin: Provenance) -> list[str]:
    if origin.quantiles is None:
        return ["", "No reference quantiles are stored: scores have no percentiles."]
    return ["", f"Percentiles refer to {origin.quantiles.count} examples: {origin.quantiles.reference}."]


def _measured(metrics: dict[str, Any]) -> list[str]:
    values, intervals, meta = (metrics.get(k) or {} for k in ("metrics", "intervals", "meta"))
    data = _without_folders(meta.get("data", ""))
    lines = [f"{data} ({meta.get('model', '')}, {meta.get('date', '')}); 95% bootstrap intervals.", ""]
    lines += ["| metric | value |", "|---|---|"]
    for name in _METRICS:
        if isinstance(values.get(name), (int, float)):
            low_high = intervals.get(name)
            interval = f" [{low_high[0]:.3f}, {low_high[1]:.3f}]" if low_high else ""
            lines.append(f"| {name} | {values[name]:.3f}{interval} |")
    return lines


def _without_folders(data: str) -> str:
    """`data` of a report begins with the path of the data set on the machine that evaluated; only its name stays."""
    path, split, rest = data.partition(", split ")
    return f"{_name(path)}{split}{rest}"


def license_text(weight_license: str) -> str:
    """The licenses of the parts of the file, Markdown."""
    try:
        files = importlib.metadata.files("rahf") or []
        text = next((f.read_text() for f in files if f.name == "LICENSE"), "")
    except importlib.metadata.PackageNotFoundError:
        text = ""
    text = f"## Apache-2.0\n\n```\n{text.strip()}\n```" if text else "https://www.apache.org/licenses/LICENSE-2.0"
    return (
        "# Licenses\n\n"
        f"- Weights (`weights.safetensors`): {weight_license}\n"
        "- Functions (`functions/`), configuration and this text were written by rahf, licensed under Apache-2.0\n"
        "- Vocabulary (`tokenizer.model`): comes with the weights or their training data and shares their license\n"
        f"\n{text}\n"
    )
