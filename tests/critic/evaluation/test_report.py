"""The HTML report: complete, escaped, self-contained, of bounded size; the terminal table; the JSON."""

import dataclasses
import html.parser
import io
import json
import math
import re

import jinja2
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from rahf.core.batch import HEATMAPS, SCORES, fake
from rahf.critic.evaluation.report.curves import charts, metric_curves
from rahf.critic.evaluation.report.gallery import errors
from rahf.critic.evaluation.report.metrics import MetricRow, metric_groups, number, plot
from rahf.critic.evaluation.report.page import ReportExample, metrics_json, metrics_table, write_report
from rahf.critic.evaluation.report.render import render
from rahf.metrics import EvaluationMetrics, MeanBaseline

HOSTILE = '<script>alert("x")</script> & a "cat" \x00'


class Page(html.parser.HTMLParser):
    """Checks that tags nest, and keeps what the tests ask about."""

    VOID = {"meta", "img", "input", "br", "line", "circle", "polyline"}

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text.append(data)

    def count(self, tag: str, css: str | None = None) -> int:
        return sum(t == tag and (css is None or css in a.get("class", "").split()) for t, a in self.tags)


def example(number: int = 0, **changes) -> ReportExample:
    rng = np.random.default_rng(number)
    true = np.zeros((24, 24, 2), np.uint8)
    true[4:9, 6:12, 0] = 170
    base = ReportExample(
        uid=f"uid-{number}",
        image=rng.integers(0, 256, (48, 64, 3), dtype=np.uint8),
        prompt="a yellow cat, two dogs",
        words=["a", "yellow", "cat", "two", "dogs"],
        loss=float(number),
        heatmaps=rng.random((12, 12, 2)).astype(np.float32),
        scores=rng.random(4).astype(np.float32),
        labels=[1, 0, 0, 1, 1],
        probability=[0.1, 0.9, 0.8, 0.2, 0.1],
        true_heatmaps=true,
        true_scores=np.array([0.5, np.nan, 0.25, 1.0], np.float32),
        true_labels=[1, 0, 1, 0, 1],
    )
    return dataclasses.replace(base, **changes)


@pytest.fixture(scope="module")
def evaluated():
    metrics = EvaluationMetrics()
    baseline = MeanBaseline(np.full((8, 8, 2), 0.1, np.float32), np.full(4, 0.5, np.float32))
    for seed in range(3):
        batch = fake(batch_size=5, image_size=8, seed=seed)
        batch.index[:] += 5 * seed
        batch.heatmaps[0] = 0
        rng = np.random.default_rng(seed)
        chance = rng.random(batch.word_labels.shape)
        labels = (chance < 0.5).astype(int)
        metrics.update(batch, rng.random((5, 8, 8, 2)), rng.random((5, 4)), labels, labels, chance)
        baseline.update(batch)
    return metrics.compute(), metrics.intervals(50), baseline.compute()


def read(path) -> tuple[str, Page]:
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


def test_every_metric_is_in_the_page_with_interval_and_baseline(tmp_path, evaluated):
    metrics, intervals, baselines = evaluated
    metrics = {**metrics, "loss/total": 0.125, "custom/<b>": 2.0}
    path = write_report(tmp_path / "new" / "report", "Title", metrics, intervals, baselines, [example()])
    assert path == tmp_path / "new" / "report" / "index.html" and [f.name for f in path.parent.iterdir()] == [
        "index.html"
    ]
    text, page = read(path)
    counts = [n for n in metrics if n.split("/")[-1] in ("count", "count_empty", "count_majority", "words")]
    counts += [n for n in metrics if n.endswith("/misaligned")]
    titles = {attrs["title"].split(":")[0] for tag, attrs in page.tags if tag == "th" and "title" in attrs}
    assert titles == set(metrics) - set(counts)
    shown = "".join(page.text)
    for group in metric_groups(metrics, intervals, baselines):
        assert group.count in shown
        for row in group.rows:
            assert number(row.value, row.digits) in shown
            if row.name in intervals:
                assert all(number(edge, row.digits) in shown for edge in intervals[row.name])
            if row.name in baselines:
                assert number(baselines[row.name], row.digits) in shown
    assert "15 maps: 3 empty, 12 with marks" in shown


def test_everything_from_outside_is_escaped(tmp_path):
    bad = example(
        uid="../../etc/<img src=x onerror=alert(1)>",
        prompt=HOSTILE,
        words=["<script>alert(", "x", ")</script>"],
        labels=[0, 1, 1],
        probability=None,
        true_labels=[0, 0, 1],
    )
    lone = example(1, prompt="\udcff cat", words=["\udcff", "cat"], labels=[1, 1], true_labels=[1, 1])
    metrics, meta = {"scores/mean/plcc": 0.5, "<u>": 1.0}, {"<i>key</i>": "<b>value</b>"}
    curves = [{"step": s, "loss/<s>": 1.0 / (s + 1)} for s in range(4)]
    path = write_report(tmp_path, HOSTILE, metrics, examples=[bad, lone], meta=meta, curves=curves)
    text, page = read(path)
    names = {tag for tag, _ in page.tags}
    assert not names & {"u", "s"} and "<i>key" not in text
    assert page.count("script") == 1 and "onerror=alert" in "".join(page.text)
    assert not any("onerror" in attrs for _, attrs in page.tags)
    shown = "".join(page.text)
    for part in ('<script>alert("x")</script> & a "cat"', "<i>key</i>", "<b>value</b>", "etc/<img src=x"):
        assert part in shown
    assert [f.name for f in tmp_path.iterdir()] == ["index.html"]


def test_the_page_loads_nothing(tmp_path):
    path = write_report(tmp_path, "t", {}, examples=[example()])
    text, page = read(path)
    for tag, attrs in page.tags:
        for key in ("src", "href"):
            assert attrs.get(key, "data:").startswith(("data:", "#")), (tag, attrs)
    assert not re.search(r"https?://", text)
    urls = re.findall(r"url\(([^)]{0,30})", text)
    assert urls and all(url.startswith("data:image/") for url in urls)
    assert "default-src 'none'" in text


def test_gallery_shows_prediction_beside_truth(tmp_path):
    _, page = read(write_report(tmp_path, "t", {}, examples=[example()]))
    assert page.count("article") == 1 and page.count("figure") == 5
    # Layers: two predicted, one true; the other truth is empty and says so.
    assert page.count("img") == 3 and "".join(page.text).count("nothing marked") == 1
    marks = [a["class"] for t, a in page.tags if t == "mark"]
    # Three in the legend. Predicted: yellow right, cat wrong. True: yellow found, two missed.
    assert marks == ["hit", "false", "missed", "hit", "false", "hit", "missed"]
    titles = [a.get("title") for t, a in page.tags if t == "mark"][3:5]
    assert titles == ["misaligned with probability 0.90", "misaligned with probability 0.80"]
    ticks = [a["style"] for t, a in page.tags if t == "i" and "left" in a.get("style", "")]
    assert ticks == ["left:50.0%", "left:25.0%", "left:100.0%"]  # alignment was not rated


def test_embedded_picture_is_the_picture(tmp_path):
    import base64

    picture = np.zeros((30, 50, 3), np.uint8)
    picture[:, :25] = (200, 30, 30)
    text, _ = read(write_report(tmp_path, "t", {}, examples=[example(image=picture)]))
    data = re.search(r"\.p0\{background-image:url\(data:image/jpeg;base64,([^)]+)\)", text).group(1)
    decoded = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    assert decoded.shape == picture.shape and np.abs(decoded.astype(int) - picture).mean() < 6
    layers = re.findall(r'src="data:image/\w+;base64,([^"]+)"', text)
    truth = np.asarray(Image.open(io.BytesIO(base64.b64decode(layers[1]))).convert("RGBA"))
    assert truth.shape == (24, 24, 4)
    assert truth[6, 8, 3] > 240 and truth[20, 20, 3] < 10


def test_labels_may_be_missing(tmp_path):
    bare = example(labels=None, probability=None, true_heatmaps=None, true_scores=None, true_labels=None)
    half = example(1, true_heatmap_mask=(False, True), loss=math.nan)
    _, page = read(write_report(tmp_path, "t", {}, examples=[bare, half]))
    shown = "".join(page.text)
    assert shown.count("no label") == 3 and shown.count("no word labels") == 1 and shown.count("not predicted") == 1
    assert page.count("article") == 2
    wrong = errors(bare)
    assert wrong["loss"] == 0 and all(math.isnan(v) for name, v in wrong.items() if name != "loss")


def test_errors_hand_computed():
    maps = np.zeros((2, 2, 2), np.float32)
    maps[0, 0, 0] = 1
    true = np.zeros((2, 2, 2), np.uint8)
    true[:, :, 1] = 255
    wrong = errors(
        example(
            loss=3.0,
            heatmaps=maps,
            true_heatmaps=true,
            scores=np.array([0.5, 0.5, 0.5, 0.5]),
            true_scores=np.array([0.25, np.nan, 0.5, 1.0]),
        )
    )
    assert wrong == {
        "loss": 3.0,
        "scores": pytest.approx(0.25),
        "implausibility": pytest.approx(0.25),
        "misalignment": pytest.approx(1.0),
        "words": 2.0,
    }


def shown_losses(page: Page) -> list[float]:
    return [float(a["data-loss"]) for t, a in page.tags if t == "article"]


def test_worst_first_and_worst_and_best_are_kept(tmp_path):
    examples = [example(n, loss=float(n)) for n in np.random.default_rng(0).permutation(40)]
    _, page = read(write_report(tmp_path, "t", {}, examples=examples, max_examples=9))
    losses = shown_losses(page)
    assert losses == sorted(losses, reverse=True) and len(losses) == 9
    assert losses[:3] == [39, 38, 37] and losses[-3:] == [2, 1, 0]
    assert all(10 < b - a < 13 for a, b in zip(losses[5:2:-1], losses[4:2:-1]))
    assert "9 of 40 examples" in "".join(page.text)
    _, page = read(write_report(tmp_path, "t", {}, examples=examples, max_examples=40))
    assert len(shown_losses(page)) == 40 and "All 40 examples" in "".join(page.text)


def test_size_is_bounded(tmp_path):
    rng = np.random.default_rng(0)
    noise = [example(n, image=rng.integers(0, 256, (400, 400, 3), dtype=np.uint8)) for n in range(6)]
    free = write_report(tmp_path / "free", "t", {}, examples=noise)
    size = free.stat().st_size
    smaller = write_report(tmp_path / "smaller", "t", {}, examples=noise, max_bytes=size // 2)
    assert smaller.stat().st_size <= size // 2
    assert len(shown_losses(read(smaller)[1])) == 6  # coarser, but all there
    least = write_report(tmp_path / "least", "t", {}, examples=noise, max_bytes=90_000)
    losses = shown_losses(read(least)[1])
    assert least.stat().st_size <= 90_000 and 0 < len(losses) < 6
    assert losses[0] == 5  # the worst stays


def test_no_examples_and_no_metrics(tmp_path):
    _, page = read(write_report(tmp_path, "t", {}))
    assert "No examples were given." in "".join(page.text)


def test_a_failed_write_leaves_the_old_report(tmp_path, monkeypatch):
    path = write_report(tmp_path, "old", {})
    before = path.read_bytes()

    def refuse(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        write_report(tmp_path, "new", {})
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_table_in_the_terminal(evaluated):
    console = Console(file=io.StringIO(), width=120)
    console.print(metrics_table(*evaluated, title="test [split]"))
    text = console.file.getvalue()
    for name in SCORES:
        assert text.count(name.capitalize()) == 2
    for name in HEATMAPS:
        assert f"{name.capitalize()} heatmap" in text
    metrics, intervals, _ = evaluated
    assert number(metrics["keywords/f1"]) in text and "15 maps: 3 empty, 12 with marks" in text
    low, high = intervals["heatmaps/misalignment/cc"]
    assert f"{number(low)} – {number(high)}" in text
    row = next(line for line in text.splitlines() if "KLD" in line)
    assert "↓" in row


def test_numbers():
    assert [number(v) for v in (0.12345, 0.0, -0.5, None, math.nan, math.inf)] == [
        "0.123",
        "0.000",
        "-0.500",
        "–",
        "–",
        "–",
    ]
    assert number(0.00671234, 5) == "0.00671"
    assert number(0.0000012, 5) == "1.20e-06"


def test_json_has_no_nan(evaluated):
    metrics, intervals, baselines = evaluated
    tree = metrics_json(
        {**metrics, "none": math.nan}, {**intervals, "none": (math.nan, 1.0)}, {**baselines, "i": math.inf}
    )
    text = json.dumps(tree, allow_nan=False)
    again = json.loads(text)
    assert again["metrics"]["none"] is None and again["intervals"]["none"] == [None, 1.0]
    assert again["baselines"]["i"] is None
    assert again["metrics"]["keywords/f1"] == metrics["keywords/f1"]
    assert tuple(again["intervals"]["keywords/f1"]) == intervals["keywords/f1"]


def test_curves():
    rows = [{"step": s, "loss/total": 100 * 0.9**s, "loss/score": 1.0 + s} for s in range(0, 90, 3)]
    rows[0]["name"] = "x"
    rows += [{"step": 5, "scores/mean/plcc": 0.1}, {"step": 9, "scores/mean/plcc": math.nan}]
    rows += [{"step": 9, "scores/mean/plcc": 0.3}, {"step": 3, "loss/total": 5.0}, {"loss/total": 1.0}]
    curves = metric_curves(rows)
    assert curves["scores/mean/plcc"].points == [(5.0, 0.1), (9.0, 0.3)]
    assert dict(curves["loss/total"].points)[3.0] == 5.0  # the resumed run's row wins
    assert "name" not in curves
    drawn = charts(rows)
    assert [(chart.title, len(chart.lines)) for chart in drawn] == [("Loss", 2), ("Scores: PLCC", 1)]
    for line in (line for chart in drawn for line in chart.lines):
        assert all(0 <= x <= 380 and 0 <= y <= 200 for x, y in line.points)
        assert [x for x, _ in line.points] == sorted(x for x, _ in line.points)
    page = Page(render("charts.html", charts=drawn))
    assert page.count("svg") == 2 and page.count("polyline") == 3
    assert charts([]) == charts([{"step": 1, "loss/total": 1.0}]) == []


@pytest.mark.parametrize("values", [(0.0, 0.0), (-1.0, 2.0), (1e-12, 1e9), (5.0, 5.0)])
def test_curves_of_awkward_ranges(values):
    (chart,) = charts([{"step": s, "loss/total": v} for s, v in enumerate(values)])
    (line,) = chart.lines
    assert [x for x, _ in line.points] == [chart.left, chart.right]
    assert all(0 <= y <= chart.height for _, y in line.points)


def test_plot_hand_computed():
    row = MetricRow("scores/mean/plcc", "PLCC", "", 1, 0.5, (0.25, 0.75), None, 3)
    assert plot(row) == ((3, 93), 48, (25.5, 70.5), None)
    wider = plot(row._replace(value=2.0, interval=(-1.0, math.nan), baseline=0.0))
    assert wider.axis == (3, 93) and wider.interval is None
    assert wider.value == pytest.approx(3 + 90 * 3 / 3.16, abs=0.05)  # from -1 to 2.16
    assert plot(row._replace(value=math.nan)) is None


def test_a_template_with_a_missing_value_is_an_error():
    with pytest.raises(jinja2.UndefinedError, match="charts"):
        render("charts.html")
