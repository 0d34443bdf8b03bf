"""`rahf prepare regions`: boxes, polygons and run lengths, weights, bad entries."""

import json

import numpy as np
import pytest
from PIL import Image

from data_pipelines.regions import shapes
from data_pipelines.regions.prepare import prepare
from rahf.core.errors import DatasetError
from rahf.images import run_lengths
from tests.helpers.feedback_maker import grey, picture, records
from tests.helpers.richhf18k_maker import refused

W, H = 12, 8
BOX = np.zeros((H, W), bool)
BOX[2:5, 3:9] = True


def write(folder, images, annotations, **more):
    for one in images:
        if one.get("file_name") and "/" not in one["file_name"]:
            picture(folder / "pictures" / one["file_name"], W, H)
    file = folder / "coco.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": [], **more}))
    return file, folder / "pictures", folder / "out"


def entry(number, **changes):
    one = {"id": number, "file_name": f"{number}.png", "width": W, "height": H, "prompt": f"a cat {number}"}
    return {**one, "split": "train", **changes}


def run(folder, images, annotations, **options):
    summary = prepare(*write(folder, images, annotations), progress=False, **options)
    return summary, records(folder / "out")


@pytest.mark.parametrize(
    "region",
    [
        {"bbox": [3, 2, 6, 3]},
        {"segmentation": [[3, 2, 9, 2, 9, 5, 3, 5]]},
        {"segmentation": [[3, 2, 6, 2, 6, 5, 3, 5], [6, 2, 9, 2, 9, 5, 6, 5]]},
        {"segmentation": run_lengths.encode(BOX)},
        {"segmentation": {"size": [H, W], "counts": "j03500000g0"}, "bbox": [0, 0, 1, 1]},
    ],
    ids=["box", "polygon", "two polygons", "run lengths", "compressed run lengths"],
)
def test_regions_become_maps(tmp_path, region):
    if isinstance(region.get("segmentation"), dict) and isinstance(region["segmentation"]["counts"], str):
        region["segmentation"]["counts"] = compressed(run_lengths.encode(BOX)["counts"])
    _, got = run(tmp_path, [entry(1)], [{"id": 7, "image_id": 1, **region}])
    np.testing.assert_array_equal(grey(got["1.png"].implausibility) == 255, BOX)
    assert got["1.png"].misalignment is None and got["1.png"].word_labels is None
    assert np.isnan(got["1.png"].scores).all()


def compressed(counts):
    """COCO's text form, written after its description: differences of two places before, 5 bits a character."""
    text = ""
    for place, count in enumerate(counts):
        value, more = count - counts[place - 2] if place > 2 else count, True
        while more:
            bits, value = value & 0x1F, value >> 5
            more = value != (-1 if bits & 0x10 else 0)
            text += chr(bits + 0x20 * more + 48)
    return text


def test_run_lengths_of_the_coco_paper():
    """Values computed by hand: columns (0,1), (1,1), (0,0)."""
    mask = np.array([[0, 1, 0], [1, 1, 0]], bool)
    assert run_lengths.encode(mask) == {"size": [2, 3], "counts": [1, 3, 2]}
    assert run_lengths.encode(~mask) == {"size": [2, 3], "counts": [0, 1, 3, 2]}
    for one in (mask, ~mask, np.ones((1, 1), bool), np.zeros((3, 1), bool)):
        np.testing.assert_array_equal(run_lengths.decode(run_lengths.encode(one)), one)
        counts = run_lengths.encode(one)["counts"]
        np.testing.assert_array_equal(run_lengths.decode({"size": [*one.shape], "counts": compressed(counts)}), one)


def test_polygons_count_pixel_centres():
    triangle = np.array([[0, 0], [4, 0], [0, 4]], float)
    inside = shapes.polygon(triangle, (1.0, 1.0), (4, 4))
    # The centre of pixel (x, y) is inside where x + 0.5 + y + 0.5 < 4.
    np.testing.assert_array_equal(inside, np.add.outer(np.arange(4), np.arange(4)) < 3)
    assert not shapes.polygon(triangle + 10, (1.0, 1.0), (4, 4)).any()
    np.testing.assert_array_equal(shapes.polygon(triangle, (0.5, 0.5), (2, 2)), [[1, 0], [0, 0]])


def test_severities_are_weights_and_the_largest_counts(tmp_path):
    regions = [
        {"image_id": 1, "bbox": [0, 0, 4, 4], "severity": 1},
        {"image_id": 1, "bbox": [2, 0, 4, 4], "severity": 5},
        {"image_id": 2, "bbox": [0, 0, 4, 4]},
    ]
    summary, got = run(tmp_path, [entry(1), entry(2), entry(3)], regions)
    row = grey(got["1.png"].implausibility)[0]
    np.testing.assert_array_equal(row[:7], [51, 51, 255, 255, 255, 255, 0])
    assert grey(got["2.png"].implausibility).max() == 255
    assert not grey(got["3.png"].implausibility).any()  # listed without a region: somebody looked
    assert summary.largest_severity == 5 and summary.splits["train"]["pictures without a region"] == 1


def test_listed_sizes(tmp_path):
    half = {"image_id": 1, "bbox": [1.5, 1, 3, 1.5]}
    _, got = run(tmp_path, [entry(1, width=W // 2, height=H // 2)], [half])
    np.testing.assert_array_equal(grey(got["1.png"].implausibility) == 255, BOX)


def test_splits_prompts_and_no_prompt_at_all(tmp_path):
    summary, got = run(tmp_path, [entry(n, split=None, prompt=None) for n in range(20)], [])
    assert sum(summary.splits[split]["joined"] for split in summary.splits) == 20 and len(summary.splits) > 1
    assert got["0.png"].prompt == "" and not (tmp_path / "out/tokenizer.model").exists()
    assert any("no picture has a prompt" in line for line in summary.remarks())
    with_caption = [{"image_id": 1, "caption": "a dog"}]
    _, got = run(tmp_path, [entry(1, prompt=None)], with_caption)
    assert got["1.png"].prompt == "a dog" and (tmp_path / "out/tokenizer.model").exists()


def test_entries_that_cannot_be_used(tmp_path):
    images = [
        entry(1),
        entry(2, file_name=None),
        entry(3, file_name="../coco.json"),
        entry(4, width=100),
        entry(5, split="first"),
        *(entry(n) for n in range(6, 11)),
        entry(11, file_name="1.png"),
        entry(12, file_name="gone/12.png"),
    ]
    annotations = [
        {"image_id": 6, "bbox": [0, 0, -1, 2]},
        {"image_id": 7, "segmentation": [[0, 0, 1, 1]]},
        {"image_id": 8, "segmentation": {"size": [H, W], "counts": [5]}},
        {"image_id": 9, "bbox": [0, 0, 2, 2], "severity": -1},
        {"image_id": 10, "bbox": [0, 0, float("inf"), 2]},
        {"image_id": 99, "bbox": [0, 0, 1, 1]},
        {"image_id": 1, "bbox": [50, 50, 1, 1], "author": "x"},
    ]
    summary, got = run(tmp_path, images, annotations)
    assert set(got) == {"1.png"}
    expected = {"missing field": 1, "outside the folder": 1, "picture of another shape": 1, "malformed": 1,
                "bad region": 5, "duplicates": 1, "missing image": 1, "records": 12, "joined": 1}  # fmt: skip
    assert {name: summary.total(name) for name in expected} == expected
    assert summary.without_picture == 1 and summary.unread == {"annotations.author": 1}
    assert summary.total("regions outside the picture") == 1
    assert len(refused(tmp_path / "out")) == 11


def test_files_that_are_no_coco(tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    file = tmp_path / "x.json"
    for text, message in (("{", "not JSON"), ("[]", "no COCO file"), ('{"images": []}', "no COCO file.*found images")):
        file.write_text(text)
        with pytest.raises(DatasetError, match=message):
            prepare(file, pictures, tmp_path / "out", progress=False)
    file.write_text('{"images": [], "annotations": []}')
    with pytest.raises(DatasetError, match="list of images is empty"):
        prepare(file, pictures, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_unchanged_inputs_return_at_once(tmp_path):
    arguments = write(tmp_path, [entry(1)], [], licenses=[{"name": "CC BY 4.0"}])
    prepare(*arguments, progress=False)
    before = (tmp_path / "out/metadata.json").stat().st_mtime_ns
    prepare(*arguments, progress=False)
    assert (tmp_path / "out/metadata.json").stat().st_mtime_ns == before
    assert "licence, as stated: CC BY 4.0" in (tmp_path / "out/datasheet.md").read_text()
    Image.new("RGB", (W, H)).save(tmp_path / "pictures/1.png")
    prepare(*arguments, progress=False)
    assert (tmp_path / "out/metadata.json").stat().st_mtime_ns != before
