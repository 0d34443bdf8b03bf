"""Prints rows of the tables in docs/results.md from the metrics that `rahf evaluate` wrote.

    python benchmarks/results_rows.py runs/richhf18k_paper/report/test/metrics.json [more.json ...]

A dash stands for what a model does not predict. Values have as many digits as in the paper's tables.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
from collections.abc import Mapping

_SCORES = ("plausibility", "aesthetics", "alignment", "overall")  # the paper's order
_HEATMAPS = ("implausibility", "misalignment")
_MAP_METRICS = ("mse", "mse_empty", "cc", "kld", "sim", "nss", "auc_judd")
_WORDS = ("precision", "recall", "f1")


def rows(name: str, metrics: Mapping[str, float | None]) -> dict[str, str]:
    """One model's row of each table, in Markdown.

    Args:
      name: of the model, for the first column.
      metrics: name → value, None where undefined; of a `metrics.json`.
    """

    def cell(metric: str, digits: int = 3, factor: float = 1.0) -> str:
        value = metrics.get(metric)
        if value is None or not math.isfinite(value):
            return "–"
        shown = f"{value * factor:.{digits}f}"
        return shown.replace("0.", ".", 1) if abs(value * factor) < 1 else shown

    def row(cells: list[str]) -> str:
        return "| " + " | ".join([name, *cells]) + " |"

    pairs = [[cell(f"scores/{score}/{kind}") for kind in ("plcc", "srcc")] for score in _SCORES]
    row_by_table = {"scores": row(["–" if pair == ["–", "–"] else " / ".join(pair) for pair in pairs])}
    for heatmap in _HEATMAPS:
        digits = {"mse": 5, "mse_empty": 5}
        row_by_table[heatmap] = row([cell(f"heatmaps/{heatmap}/{m}", digits.get(m, 3)) for m in _MAP_METRICS])
    for prefix in ("keywords", "keywords_constrained"):
        row_by_table[prefix] = row([" / ".join(cell(f"{prefix}/{m}", 1, 100.0) for m in _WORDS)])
    return row_by_table


def main() -> None:
    """Reads the files, prints one block for each table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="METRICS.json", help="written by rahf evaluate")
    by_file = {}
    for file in parser.parse_args().files:
        tree = json.loads(pathlib.Path(file).read_text())
        by_file[file] = rows(tree.get("meta", {}).get("model", file), tree["metrics"])
    for table in next(iter(by_file.values())):
        print(f"{table}:")
        for table_rows in by_file.values():
            print(table_rows[table])
        print()


if __name__ == "__main__":
    main()
