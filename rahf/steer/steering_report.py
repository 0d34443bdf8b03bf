"""Scores of systems on prompt lists → means, intervals, paired differences, tables, box plots."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rahf.core import names
from rahf.metrics import bootstrap_intervals
from rahf.metrics.paired import PairedValues
from rahf.steer import box_plots

#: Group of all prompts.
OVERALL = "all prompts"
RESAMPLES = 2000
#: Groups of fewer prompts have no intervals: resampling two or three values says nothing about others.
LEAST = 5


class Column(NamedTuple):
    """One score of a judge.

    Attributes:
      name: for tables.
      judge: id of the model.
      score: what it is.
      took_part: system → how the judge took part in it; empty: held out.
    """

    name: str
    judge: str
    score: str
    took_part: Mapping[str, str]


class Results(NamedTuple):
    """What is reported.

    Attributes:
      systems: names; the first is the one that others are compared with.
      columns: the scores; those of judges that took no part stand first.
      scores: system → float64 [prompts, columns], means over the seeds.
      groups: group → positions of its prompts; the first is `OVERALL`.
      seeds: how many.
      notes: what a reader must know besides the numbers.
    """

    systems: tuple[str, ...]
    columns: tuple[Column, ...]
    scores: Mapping[str, np.ndarray]
    groups: Mapping[str, np.ndarray]
    seeds: int
    notes: tuple[str, ...] = ()

    @property
    def held_out(self) -> list[Column]:
        """Scores of judges that took part in no system."""
        return [column for column in self.columns if not column.took_part]


def summary(results: Results, resamples: int = RESAMPLES) -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """Group → column → system → numbers; intervals are 95 %, by bootstrap over prompts.

    Every system has ``mean``, ``interval`` and ``prompts``. All but the first have ``difference`` to the first, paired
    by prompt, its ``difference_interval``, and ``wins``: the share of prompts at which the score is higher, ties half.
    Intervals of groups of fewer than `LEAST` prompts are NaN.
    """
    first, columns = results.systems[0], [column.name for column in results.columns]
    out: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}
    for group, rows in results.groups.items():
        out[group] = {column: {} for column in columns}
        for system in results.systems:
            pairs = PairedValues(columns)
            pairs.add(results.scores[first][rows], results.scores[system][rows])
            means, intervals = pairs.compute(), bootstrap_intervals(pairs, resamples)
            if len(rows) < LEAST:
                intervals = dict.fromkeys(intervals, (math.nan, math.nan))
            for column in columns:
                values = {"mean": means[f"{column}/after"], "interval": list(intervals[f"{column}/after"])}
                values["prompts"] = len(rows)
                if system != first:
                    values["difference"] = means[f"{column}/difference"]
                    values["difference_interval"] = list(intervals[f"{column}/difference"])
                    values["wins"] = means[f"{column}/wins"]
                out[group][column][system] = values
    return out


def markdown(results: Results, numbers: Mapping[str, Any]) -> str:
    """The tables of `summary` as Markdown."""
    first, prompts = results.systems[0], len(results.groups[OVERALL])
    lines = [
        f"# {', '.join(map(_cell, results.systems))}",
        "",
        f"{prompts} prompts, {results.seeds} seed{'s' if results.seeds > 1 else ''} each. Every system starts from the "
        f"same noise. Means over prompts with 95 % bootstrap intervals; differences to {_cell(first)}, paired by "
        "prompt; wins: share of prompts with the higher score, ties half. **Bold**: the interval excludes 0. Groups of "
        f"fewer than {LEAST} prompts have no intervals. Intervals are not corrected for the number of comparisons.",
        "",
    ]
    if not results.held_out:
        lines += [
            "**No held-out judge.** Every judge took part in a system, so no number here shows that pictures are "
            "better: give one that was trained with another seed or by others.",
            "",
        ]
    lines += [f"* {_cell(note)}" for note in results.notes] + ([""] if results.notes else [])
    lines += ["## All prompts", "", "| score | system | mean | difference | wins |", "|---|---|---|---|---|"]
    for column in results.columns:
        for number, system in enumerate(results.systems):
            values = numbers[OVERALL][column.name][system]
            label = _label(column) if number == 0 else ""
            lines.append(
                f"| {label} | {_system(system, column)} | {_mean(values)} | {_difference(values)} | {_wins(values)} |"
            )
    lines.append("")
    if any(column.took_part for column in results.columns):
        lines += ["† the judge took part in this system, so it is biased towards it:", ""]
        for column in results.columns:
            if column.took_part:
                roles = ", ".join(f"{_cell(system)}: {role}" for system, role in column.took_part.items())
                lines.append(f"* {_cell(column.name)} — {roles}")
        lines.append("")
    if len(results.groups) > 1:
        lines += _by_group(results, numbers)
    return "\n".join(lines).rstrip() + "\n"


def _by_group(results: Results, numbers: Mapping[str, Any]) -> list[str]:
    lines = ["## By category", ""]
    for column in results.columns:
        heads = [_system(system, column) for system in results.systems]
        lines += [f"### {_label(column)}", "", f"| | prompts | {' | '.join(heads)} |"]
        lines.append("|---|---|" + "---|" * len(heads))
        for group, rows in results.groups.items():
            cells = []
            for system in results.systems:
                values = numbers[group][column.name][system]
                difference = f"; {_difference(values)}" if "difference" in values else ""
                cells.append(f"{_number(values['mean'])}{difference}")
            lines.append(f"| {_cell(group)} | {len(rows)} | {' | '.join(cells)} |")
        lines.append("")
    return lines


def plots(results: Results) -> dict[str, np.ndarray]:
    """Box plots of each column, uint8 [h,w,3] by its name: a group per category, a box per system."""
    pictures = {}
    for number, column in enumerate(results.columns):
        groups = {
            group: {system: results.scores[system][rows, number] for system in results.systems}
            for group, rows in results.groups.items()
        }
        title = column.name + ("" if not column.took_part else " (took part)")
        pictures[column.name] = box_plots.draw(title, groups, results.systems)
    return pictures


def _label(column: Column) -> str:
    return f"{_cell(column.name)} ({'took part' if column.took_part else 'held out'})"


def _system(system: str, column: Column) -> str:
    return _cell(system) + (" †" if system in column.took_part else "")


def _mean(values: Mapping[str, Any]) -> str:
    return _number(values["mean"]) + _interval(values["interval"], ".4f")


def _difference(values: Mapping[str, Any]) -> str:
    if "difference" not in values:
        return ""
    low, high = values["difference_interval"]
    if not math.isfinite(values["difference"]):
        return "–"
    text = f"{values['difference']:+.4f}" + _interval((low, high), "+.4f")
    return f"**{text}**" if low > 0 or high < 0 else text


def _interval(edges: Sequence[float], form: str) -> str:
    low, high = edges
    return f" ({low:{form}} … {high:{form}})" if math.isfinite(low) and math.isfinite(high) else ""


def _wins(values: Mapping[str, Any]) -> str:
    return f"{values['wins']:.0%}" if "wins" in values and math.isfinite(values["wins"]) else ""


def _number(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "–"


def _cell(text: str) -> str:
    """Text that is no Markdown of its own."""
    return names.one_line(text, 120).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def groups_of(categories: Sequence[tuple[str, str]]) -> dict[str, np.ndarray]:
    """Group → positions of its prompts: all; each list, if there are several; each category of a list.

    Args:
      categories: list and category of each prompt; "" for none.
    """
    several = len({listed for listed, _ in categories}) > 1
    members: dict[str, list[int]] = {OVERALL: list(range(len(categories)))}
    for number, (listed, category) in enumerate(categories):
        if several:
            members.setdefault(listed, []).append(number)
        if category:
            members.setdefault(f"{listed}: {category}" if several else category, []).append(number)
    return {group: np.asarray(rows) for group, rows in members.items()}
