"""The report: every number is where it belongs, hostile texts are escaped, nothing is fetched, and the size is kept."""

import base64
import hashlib
import html.parser
import math
import re

import numpy as np
import pytest
from PIL import Image

from rahf.cli import main as cli
from rahf.comparison.report import plots
from rahf.comparison.report.items import Item, Kept, SideData, disagreement, reduced_map
from rahf.comparison.report.run import report
from rahf.comparison.wins import calibration, shares_of_examples, shares_of_pictures, win_rate
from rahf.core.errors import ArgumentError, DataError
from rahf.critic.feedback import Feedback
from tests.helpers.predictions_maker import labels_of, write_predictions

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>'


class Page(html.parser.HTMLParser):
    """Checks that tags nest, and keeps tags with attributes."""

    VOID = {"meta", "input", "br", "line", "circle", "polyline", "polygon"}

    def __init__(self, text):
        super().__init__()
        self.open, self.tags = [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def of(self, css):
        return [attrs for _, attrs in self.tags if css in (attrs.get("class") or "").split()]


@pytest.fixture(scope="module")
def written(tiny_data, tmp_path_factory):
    """A report of two predictions files, one of them with a hostile name; its text."""
    folder = tmp_path_factory.mktemp("report")
    labels = labels_of(tiny_data)
    a = write_predictions(folder, labels, "a.jsonl", noise=0.1)
    b = write_predictions(folder, labels, "b.jsonl", noise=0.5, seed=1, model=HOSTILE)
    out = folder / "report.html"
    made = report([str(a), str(b)], data=str(tiny_data), out=out, resamples=20, title=f"Title {HOSTILE}")
    assert made == (out, len(labels), 0)
    return out.read_text()


def test_it_is_whole_and_asks_nobody(written):
    page = Page(written)
    assert len(page.of("item")) == 10
    places = [value for _, attrs in page.tags for name, value in attrs.items() if name in ("src", "href", "action")]
    assert places and all(value.startswith("#") for value in places)
    assert set(re.findall(r"url\((.{5})", written)) == {"data:"}
    policy = next(a["content"] for t, a in page.tags if t == "meta" and a.get("http-equiv"))
    script = re.search(r"<script>(.*?)</script>", written, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy
    names = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    assert {"metrics", "wins", "scores", "calibration", "marks", "words", "pictures", "about"} <= names


def test_hostile_texts_are_escaped(written):
    assert written.count("<script") == 1 and "<img" not in written
    assert "&lt;script&gt;alert(1)" in written
    assert not [a for _, a in Page(written).tags if any(name.startswith("on") for name in a)]


def test_every_item_has_what_its_script_needs(written):
    page = Page(written)
    orders = written.count("<option", written.index('id="order"'), written.index('id="way"')) - 1
    for item in page.of("item"):
        assert item["data-pictures"] == "0,0,0"  # two sources and people, one picture
        assert len(item["data-values"].split(",")) == orders
        assert f".p{item['data-number']}-0{{" in written


def test_the_size_is_kept(tiny_data, tmp_path):
    file = write_predictions(tmp_path, labels_of(tiny_data), noise=1.0)
    out = tmp_path / "small.html"
    arguments = dict(data=str(tiny_data), out=out, resamples=2)
    report([str(file)], **arguments)
    whole = out.stat().st_size
    from rahf.comparison.report import run as module

    lowest, module._MIN_BYTES = module._MIN_BYTES, 0
    try:
        report([str(file)], **arguments, max_bytes=int(whole * 0.75))
    finally:
        module._MIN_BYTES = lowest
    assert out.stat().st_size <= whole * 0.75
    assert 0 < len(Page(out.read_text()).of("item")) <= 10


class OneModel:
    """Scores the brightness of a picture; marks what is bright."""

    model_id, batch_size = "bright-1-abc", 4

    class outputs:  # noqa: N801
        score_mask, heatmap_mask, keywords = (True,) * 4, (True, False), False

        @staticmethod
        def note():
            return None

    def iterate(self, images, prompts, batch_size=None, **_):
        import io

        for place, (image, prompt) in enumerate(zip(images, prompts)):
            grey = np.asarray(Image.open(io.BytesIO(image)).convert("L"), np.float32) / 255
            maps = np.stack([grey, np.full_like(grey, np.nan)], -1)
            scores = dict.fromkeys(("plausibility", "alignment", "aesthetics", "overall"), float(grey.mean()))
            yield place, Feedback(
                "x", prompt, scores, prompt.split(), np.full(len(prompt.split()), np.nan), np.ones(len(prompt.split())),
                "nothing", maps, np.zeros((2, 2, 3), np.uint8), grey.shape, self.model_id,
            )  # fmt: skip


@pytest.fixture
def one_model(monkeypatch):
    monkeypatch.setattr("rahf.critic.loading.load", lambda path: OneModel())


def pictures(folder, level, count=6, size=(16, 12)):
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", size, (level + number,) * 3).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"prompt {number} {HOSTILE}")
    return str(folder)


def test_generators_are_paired_by_prompt(tmp_path, one_model, capsys):
    dark = pictures(tmp_path / "dark", 20, count=7)
    bright = pictures(tmp_path / "bright", 200, size=(12, 16))
    (tmp_path / "bright/bad.png").write_bytes(b"none")
    (tmp_path / "bright/bad.txt").write_text("prompt")
    out = tmp_path / "report.html"
    assert cli.main(["report", "bright", "--images", dark, bright, "--out", str(out)]) == 3
    printed = capsys.readouterr().out
    assert "1 pictures refused; bad.png" in printed and "1 prompts are left out" in printed
    text = out.read_text()
    assert "0.0% – 0.0%" in text and "higher overall" in text
    assert [item["data-pictures"] for item in Page(text).of("item")] == ["0,1"] * 6
    assert ".f0-1{width:" in text  # the upright picture within the wide stage
    assert "<script>alert" not in text


def test_pictures_without_labels(tmp_path, one_model):
    folder = pictures(tmp_path / "some", 20)
    out = tmp_path / "report.html"
    assert cli.main(["report", "bright", "--images", folder, "--out", str(out)]) == 0
    page = Page(out.read_text())
    names = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    assert "scores" in names and not {"metrics", "calibration", "wins"} & names
    assert len(page.of("item")) == 6


def test_wrong_calls_say_what_to_give(tmp_path, one_model):
    folder = pictures(tmp_path / "some", 20)
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.png").write_bytes((tmp_path / "some/1.png").read_bytes())
    (other / "a.txt").write_text("another prompt")
    with pytest.raises(ArgumentError, match="give either --data"):
        report(["a"], out=tmp_path / "r.html")
    with pytest.raises(ArgumentError, match="under one model"):
        report(["a", "b"], images=[folder, folder], out=tmp_path / "r.html")
    with pytest.raises(ArgumentError, match="no prompt occurs in two"):
        report(["a"], images=[folder, str(other)], out=tmp_path / "r.html")
    with pytest.raises(ArgumentError, match="is a folder; give a file"):
        report(["a"], images=[folder], out=tmp_path)
    with pytest.raises(ArgumentError, match="at most 6"):
        report(list("abcdefg"), images=[folder], out=tmp_path / "r.html")
    (other / "a.png").write_bytes(b"none")
    with pytest.raises(DataError, match="no picture that can be used; the first of 1 refused: a.png"):
        report(["a"], images=[str(other)], out=tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_win_rates_by_hand():
    assert shares_of_pictures({"a": [1, 3], "b": [1], "c": [1]}, {"a": [2], "b": [1], "d": [0]}) == [0.5, 0.5]
    assert shares_of_pictures({"a": [math.nan, 3]}, {"a": [2, math.nan]}) == [1]
    first, second = np.array([1, 2, 0, np.nan]), np.array([0, 3, 0, 1])
    assert shares_of_examples(first, second, ["a", "a", "b", "c"]) == [0.5, 0.5]
    rate = win_rate([1] * 9 + [0])
    assert rate.rate == 0.9 and 0.6 < rate.low < 0.9 <= rate.high == 1 and rate.prompts == 10
    assert win_rate([math.nan]).prompts == 0


def test_calibration_by_hand():
    predicted = np.array([0.1] * 5 + [0.9] * 5 + [np.nan])
    rated = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 0.5])
    low, high = calibration(predicted, rated, bins=10)
    assert (low.predicted, low.count, high) == (pytest.approx(0.1), 5, (pytest.approx(0.9), 1, 1, 1, 5))
    assert low.rated == pytest.approx(0.2)
    assert low.high - low.rated == pytest.approx(1.96 * 0.4 / math.sqrt(5))
    assert calibration(np.array([np.nan]), np.array([1.0])) == []


def test_disagreement_by_hand():
    def side(score, mark, labels):
        values = np.zeros((64, 64), np.uint8)
        values[:32] = mark
        return SideData(np.array([score, np.nan, 0.5, 0.5]), (values, None), labels, 0)

    measures = disagreement([side(0.2, 255, (1, 0, 1, 1)), side(0.9, 0, (1, 1, 1, 1)), None])
    assert measures["scores"] == pytest.approx(0.7)
    assert measures["maps"] == pytest.approx(1, abs=0.01)
    assert measures["words"] == 0.25
    assert all(map(math.isnan, disagreement([side(0.2, 0, None)]).values()))


def test_a_gallery_keeps_what_differs_most_and_a_sample_and_its_bound():
    kept = Kept(10)
    makes = []

    def item(number):
        makes.append(number)
        return Item(str(number), "", (), (), (), {}, number)

    for number in range(500):
        kept.offer(1.0 if number % 100 == 7 else 0.1, lambda n=number: item(n))
    shown = [one.order for one in kept.items()]
    assert len(shown) == 10 and shown == sorted(shown)
    assert {7, 107, 207, 307, 407} <= set(shown)
    assert len(makes) < 100


def test_maps_are_reduced_and_axes_hold_every_value():
    assert reduced_map(np.full((1000, 500), 255, np.uint8)).shape == (160, 80)
    assert reduced_map(None) is None
    dots = plots.metric_dots([("c0", 2.0, (1.0, 3.0)), ("c1", -1.0, None), ("c2", math.nan, None)], [("x", None)])
    assert [css for css, *_ in dots.dots] == ["c0", "c1"]
    assert all(0 <= place <= 100 for _, *places in dots.dots for place in places)
