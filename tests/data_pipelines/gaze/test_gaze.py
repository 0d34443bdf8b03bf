"""Where people look as a dataset: fixations, densities, layouts, and what is refused."""

import dataclasses
import io
import json

import numpy as np
import pytest
import scipy.io
from PIL import Image

from data_pipelines import store
from data_pipelines.gaze import density, examples, layouts, prepare, views
from data_pipelines.gaze.loader import GazeEvalLoader, train_loader
from data_pipelines.loading import transforms
from data_pipelines.prepare.counts import Refused
from rahf.config import AugmentConfig, Config, DataConfig, SaliencyConfig
from rahf.core.errors import ArgumentError, ConfigError, DataError, DatasetError
from rahf.images import ImageError, letterbox

WIDE = (30, 50)  # height and width of the pictures


def picture(path, size=WIDE, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)).save(path)


@pytest.fixture(scope="module")
def gaze_data(tmp_path_factory):
    """A folder with every kind of picture that can and cannot be used, and the dataset of it."""
    folder = tmp_path_factory.mktemp("gaze")
    lines = ["image,x,y,viewer,duration"]
    points = {
        "a.png": [(10, 5), (45, 20)],
        "b.png": [(3, 4), (49.5, 29.5), (60, 10)],  # one outside
        "turned.png": [(5, 10), (20, 45)],
        "far.png": [(500, 400), (300, 20)],
    }
    for number, name in enumerate([*points, "map.png", "black.png", "square.png", "nobody.png"]):
        picture(folder / "images" / name, seed=number)
        lines += [f"{name},{x},{y},viewer {place},200" for place, (x, y) in enumerate(points.get(name, []))]
    (folder / "fixations.csv").write_text("\n".join(lines))
    maps = {
        "map": np.zeros((15, 25), np.uint8),
        "black": np.zeros(WIDE, np.uint8),
        "square": np.full((9, 9), 7, np.uint8),
    }
    maps["map"][3, 20] = 200
    (folder / "maps").mkdir()
    for name, values in maps.items():
        Image.fromarray(values).save(folder / "maps" / f"{name}.png")
    out = tmp_path_factory.mktemp("dataset") / "out"
    return folder, out, prepare.prepare(folder, out, sigma=4.0, dev=0.0, test=0.0, progress=False)


def test_counts_name_every_refusal(gaze_data):
    _, out, counts = gaze_data
    kinds = ["joined", "x and y exchanged", "fixations outside the picture", "all-zero map", "map of another shape"]
    assert [counts.total(kind) for kind in [*kinds, "no fixations"]] == [3, 1, 1, 1, 1, 1]
    assert counts.total("fixations") == 4 and counts.total("dropped fixations outside") == 1
    reasons = {
        line["image"]: line["reason"] for line in map(json.loads, (out / "refused.jsonl").read_text().splitlines())
    }
    assert "--order yx" in reasons["turned.png"] and "x goes from 5 to 20" in reasons["turned.png"]
    assert "not of the screen" in reasons["far.png"] and "9 x 9" in reasons["square.png"]


def test_fixations_and_density_are_kept(gaze_data):
    records = {record.uid: record for record in store.open_split(gaze_data[1], "train")}
    np.testing.assert_array_equal(records["a.png"].fixations, np.float32([[10, 5, 0, 200], [45, 20, 1, 200]]))
    assert records["map.png"].fixations is None
    stored = density.decode(records["a.png"].saliency)
    slow = np.zeros(stored.shape)
    for x, y in [(10, 5), (45, 20)]:
        for row in range(stored.shape[0]):
            for column in range(stored.shape[1]):
                place = (column + 0.5) * 50 / stored.shape[1], (row + 0.5) * 30 / stored.shape[0]
                slow[row, column] += np.exp(-((place[0] - x) ** 2 + (place[1] - y) ** 2) / (2 * 16))
    np.testing.assert_allclose(stored, slow / slow.sum(), atol=2e-7)
    peak = np.unravel_index(density.decode(records["map.png"].saliency).argmax(), (15, 25))
    assert peak == (3, 20)


def test_a_run_with_the_same_inputs_returns_at_once(gaze_data):
    folder, out, counts = gaze_data
    before = (out / store.INFO_FILE).stat().st_mtime_ns
    again = prepare.prepare(folder, out, sigma=4.0, dev=0.0, test=0.0, progress=False)
    assert again.to_dict() == counts.to_dict() and (out / store.INFO_FILE).stat().st_mtime_ns == before


def test_exchanged_axes_are_read_when_told():
    points = views.rows([5, 20], [10, 45])
    with pytest.raises(Refused, match="exchanged") as caught:
        views.check(points, WIDE)
    assert caught.value.kind == "x and y exchanged"
    np.testing.assert_array_equal(views.check(points, WIDE, exchange=True).points[:, :2], [[10, 5], [45, 20]])
    # In a square picture, and where both orders fit, nothing can be told.
    assert views.check(views.rows([5], [10]), (50, 50)).outside == 0
    # The edges belong to the picture.
    assert len(views.check(views.rows([0, 50], [0, 30]), WIDE).points) == 2


@pytest.mark.parametrize("points", [[], [[np.nan, 3]]])
def test_no_fixation_is_refused(points):
    points = np.array(points, float).reshape(-1, 2)
    with pytest.raises(Refused, match="nobody"):
        views.check(views.rows(points[:, 0], points[:, 1]), WIDE)


def test_density_of_a_single_fixation():
    """Hand-computed: cells of one row at 0.5, 1.5, 2.5 and a fixation at x = 1.5, sigma 1."""
    values = density.gaussian(np.array([[1.5, 0.5]]), (1, 3), 1.0)
    side = np.exp(-0.5)
    np.testing.assert_allclose(values, [[side, 1, side] / (1 + 2 * side)])
    with pytest.raises(ArgumentError, match="sigma"):
        density.gaussian(np.zeros((0, 2)), (1, 3), 1.0)


def test_density_survives_16_bits_and_refuses_black():
    values = np.random.default_rng(0).random((6, 9)) ** 4
    np.testing.assert_allclose(
        density.decode(density.encode(values)), values / values.sum(), atol=1.5e-5 * values.max() / values.sum()
    )
    buffer = io.BytesIO()
    Image.new("L", (2, 2)).save(buffer, "PNG")
    with pytest.raises(ImageError, match="0 everywhere"):
        density.decode(buffer.getvalue())


def osie_folder(folder):
    for number in range(8):
        picture(folder / "stimuli" / f"{1001 + number}.jpg", seed=number)
    (folder / "eye").mkdir()
    viewer = {"fix_x": np.array([10.0, 20.5]), "fix_y": np.array([5.0, 6.0]), "fix_duration": np.array([100, 250])}
    one = {"fix_x": 7.0, "fix_y": 8.0, "fix_duration": 90}
    cells = np.array([viewer, one], object)
    rows = np.array([(f"{1001 + n}.jpg", cells) for n in range(8)], [("img", "O"), ("subjects", "O")])
    scipy.io.savemat(folder / "eye" / "fixations.mat", {"fixations": rows})


def test_osie_layout(tmp_path):
    osie_folder(tmp_path)
    viewed = layouts.osie(tmp_path)
    assert [one.split for one in viewed] == ["train", "train", "train", "test", "train", "dev", "train", "train"]
    np.testing.assert_array_equal(viewed[7].fixations(), [[10, 5, 0, 100], [20.5, 6, 0, 250], [7, 8, 1, 90]])


def test_cat2000_mit1003_and_salicon_layouts(tmp_path):
    picture(tmp_path / "cat" / "trainSet" / "Stimuli" / "Art" / "001.jpg")
    (tmp_path / "cat/trainSet/FIXATIONLOCS/Art").mkdir(parents=True)
    mask = np.zeros(WIDE, np.uint8)
    mask[4, 9] = 1
    scipy.io.savemat(tmp_path / "cat/trainSet/FIXATIONLOCS/Art/001.mat", {"fixLocs": mask})
    (cat,) = layouts.cat2000(tmp_path / "cat")
    assert cat.uid == "Art/001.jpg"
    np.testing.assert_array_equal(cat.fixations()[:, :2], [[9.5, 4.5]])

    picture(tmp_path / "mit" / "ALLSTIMULI" / "i1.jpeg")
    (tmp_path / "mit/ALLFIXATIONMAPS").mkdir()
    Image.fromarray(255 * mask).save(tmp_path / "mit/ALLFIXATIONMAPS/i1_fixPts.jpg", quality=100)
    (mit,) = layouts.mit1003(tmp_path / "mit")
    np.testing.assert_array_equal(mit.fixations()[:, :2], [[9.5, 4.5]])

    picture(tmp_path / "sal" / "images" / "val" / "c.jpg")
    (tmp_path / "sal/fixations/val").mkdir(parents=True)
    gaze = np.array([(np.array([[10, 5], [50, 30]]),)], [("fixations", "O")])
    scipy.io.savemat(tmp_path / "sal/fixations/val/c.mat", {"gaze": gaze})
    (salicon,) = layouts.salicon(tmp_path / "sal")
    assert salicon.split == "dev"
    np.testing.assert_array_equal(salicon.fixations()[:, :2], [[9.5, 4.5], [49.5, 29.5]])


@pytest.mark.parametrize(
    "content, match",
    [
        ({"fixations.csv": "image,x\na.png,3"}, "lacks y"),
        ({"fixations.csv": "image,x,y\na.png,left,3"}, "no numbers"),
        ({"fixations.csv": "image,x,y\nb.png,3,3"}, "first 'b.png'"),
        ({"fixations.json": "{}"}, "list of objects"),
        ({"fixations.json": '[{"image": "a.png", "x": [1, 2], "y": [1]}]'}, "2 x coordinates but 1 y"),
        ({"fixations.json": "[]", "fixations.csv": "image,x,y"}, "keep one"),
        ({"fixations.mat": "nothing"}, "no readable MATLAB file"),
        ({}, "expected fixations.csv"),
    ],
)
def test_bad_folders_are_named(tmp_path, content, match):
    picture(tmp_path / "images" / "a.png")
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(DatasetError, match=match):
        prepare.prepare(tmp_path, tmp_path / "out", sigma=3.0, progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options, match",
    [
        ({"layout": "oise"}, "osie"),
        ({"order": "zx"}, "--order"),
        ({"sigma": -1.0}, "--sigma"),
        ({"sigma": 3.0, "sigma_degrees": 1.0}, "give either"),
        ({"sigma_degrees": 1.0}, "--pixels-per-degree"),
        ({}, "--sigma PIXELS"),
    ],
)
def test_bad_options_are_named(tmp_path, options, match):
    picture(tmp_path / "images" / "a.png")
    (tmp_path / "fixations.json").write_text('[{"image": "a.png", "x": [1, 2], "y": [1, 2]}]')
    with pytest.raises(DatasetError, match=match):
        prepare.prepare(tmp_path, tmp_path / "out", progress=False, **options)


@pytest.mark.parametrize(
    "size, frame", [((600, 800), (0, 0, 72, 96)), ((800, 600), (0, 21, 72, 54)), ((10, 1000), (35, 0, 1, 96))]
)
def test_frames(size, frame):
    assert letterbox.fit(size, (72, 96)) == frame


def small_config(out, **model):
    model = SaliencyConfig(image_height=32, image_width=64, stride=4, **model)
    return Config(data=DataConfig(path=str(out), batch_size=2), model=model)


def test_an_example_and_its_mirror_image(gaze_data):
    config, source = small_config(gaze_data[1]), store.open_split(gaze_data[1], "train")
    record = next(record for record in source if record.uid == "a.png")
    one, mirrored = (examples.example(record, 0, config.model, flip) for flip in (False, True))
    assert one.frame.tolist() == [0, 1, 8, 13] and mirrored.frame.tolist() == [0, 2, 8, 13]
    assert one.density.sum() == pytest.approx(1) and one.density[:, :1].sum() == 0 and one.density[:, 14:].sum() == 0
    # Fixations (10, 5) and (45, 20) of 50 x 30: cells floor(10·13/50) + 1 = 3 and floor(5·8/30) = 1; 12 and 5.
    assert np.argwhere(one.counts).tolist() == [[1, 3], [5, 12]]
    np.testing.assert_array_equal(mirrored.counts, one.counts[:, ::-1])
    np.testing.assert_array_equal(mirrored.image, one.image[:, ::-1])
    assert (one.image[:, :4] == letterbox.fill_value(config.model.image_mean)).all()
    with pytest.raises(DataError, match="rahf prepare saliency"):
        examples.example(record._replace(saliency=None), 0, config.model)


def test_crops_and_colours(gaze_data):
    """Picture, density and fixations stay registered: the brightest part of the crop is where the density is."""
    config, source = small_config(gaze_data[1]), store.open_split(gaze_data[1], "train")
    record = next(record for record in source if record.uid == "a.png")
    whole = examples.example(record, 0, config.model)
    never = AugmentConfig(crop_probability=0.0, photometric_probability=0.0, grey_probability=0.0)
    for got, expected in zip(examples.example(record, 0, config.model, False, True, never, rng(0)), whole):
        np.testing.assert_array_equal(got, expected)
    half = dataclasses.replace(never, crop_probability=1.0, crop_keep=(0.5, 0.5))
    seen = set()
    for seed in range(12):
        one = examples.example(record, 0, config.model, False, True, half, rng(seed))
        left, top, right, bottom = transforms.random_box(half, rng(seed))
        # Of 50 x 30 pixels a half of each side keeps the aspect, so the frame is the same; cells are half as large.
        assert one.frame.tolist() == whole.frame.tolist() and one.density.sum() == pytest.approx(1)
        inside = [
            (x, y) for x, y in ((10, 5), (45, 20)) if left * 50 <= x <= right * 50 and top * 30 <= y <= bottom * 30
        ]
        cells = {(int((y - top * 30) / 15 * 8), 1 + int((x - left * 50) / 25 * 13)) for x, y in inside}
        assert {tuple(cell) for cell in np.argwhere(one.counts).tolist()} == cells
        seen.add(len(cells))
    assert len(seen) > 1
    grey = dataclasses.replace(never, grey_probability=1.0)
    coloured = examples.example(record, 0, config.model, False, True, grey, rng(0)).image
    assert (coloured[..., 0] == coloured[..., 1]).all()
    with pytest.raises(ConfigError, match="augment.crop_keep"):
        wrong = dataclasses.replace(config.data, augment=AugmentConfig(crop_keep=(0.9, 0.5)))
        train_loader(dataclasses.replace(config, data=wrong), source)


def rng(seed):
    return np.random.default_rng(seed)


def test_loaders_go_on_where_they_were(gaze_data):
    config, source = small_config(gaze_data[1]), store.open_split(gaze_data[1], "train")
    with train_loader(config, source) as loader:
        batches = [next(loader) for _ in range(5)]
        state = loader.get_state()
        following = next(loader)
    with train_loader(config, source) as loader:
        loader.set_state(state)
        np.testing.assert_array_equal(next(loader).image, following.image)
        with pytest.raises(DataError, match="other data|belongs to"):
            loader.set_state(state | {"seed": 5})
    indices = np.concatenate([batch.index for batch in batches])
    assert sorted(indices[:3].tolist()) == [0, 1, 2] and sorted(indices[3:6].tolist()) == [0, 1, 2]
    with train_loader(config, source, 1, 2) as second:
        np.testing.assert_array_equal(next(second).index, batches[0].index[1:])
    evaluation = list(GazeEvalLoader(config, source, 2, 0, 1, limit=10))
    assert [batch.index.tolist() for batch in evaluation] == [[0, 1], [2, -1]]
    assert evaluation[1].example_mask.tolist() == [True, False]
