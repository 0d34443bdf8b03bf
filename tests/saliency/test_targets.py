"""Maps of where people shall look: shapes, their order, regions to be avoided, and maps that ask for nothing."""

import numpy as np
import pytest
from PIL import Image

from rahf.core.errors import ArgumentError
from rahf.saliency import targets
from rahf.saliency.targets import Avoid, Box, Disc, Gaussian


def test_a_gaussian():
    """Centres of pixels lie at halves: that of pixel (3, 5) is the peak; one sigma to the right exp(-1/2) of it."""
    drawn = targets.draw([Gaussian(5.5, 3.5, sigma=4, value=0.5)], (12, 20))
    assert drawn.shape == (12, 20) and drawn.dtype == np.float32
    assert drawn[3, 5] == 1.0 and drawn[3, 9] == pytest.approx(np.exp(-0.5)) == pytest.approx(drawn[7, 5])


def test_areas():
    """A disc's pixels sum to its area, a box's exactly, also with edges inside of pixels."""
    disc = targets.draw([Disc(16, 16, radius=10)], (32, 32))
    assert disc.sum() == pytest.approx(np.pi * 100, rel=0.01) and disc[16, 16] == 1 and disc[16, 27] == 0
    box = targets.draw([Box(1.5, 2, 4.25, 5)], (8, 8))
    assert box.sum() == pytest.approx(2.75 * 3) and box[2].tolist() == [0, 0.5, 1, 1, 0.25, 0, 0, 0]


def test_later_shapes_cover_earlier_ones():
    low, high = Disc(8, 8, radius=4, value=0.5), Disc(10, 8, radius=4)
    assert targets.draw([low, high], (16, 16))[8, 9] == 1.0
    assert targets.draw([high, low], (16, 16))[8, 9] == 0.5
    assert targets.draw([low, high], (16, 16))[8, 5] == 0.5


def test_regions_to_be_avoided():
    """One cuts what lies below it. A later shape may not reach into it, but for the far tail of a Gaussian."""
    region, everything = Avoid(Disc(4, 8, radius=3)), Box(0, 0, 16, 16)
    cut = targets.draw([everything, region], (16, 16))
    assert cut[8, 4] == 0 and cut[8, 14] == 1
    with pytest.raises(
        ArgumentError, match=r"shape 1 \(Box.*: puts 1\d\.\d% of the mass into a region that is to be avoided"
    ):
        targets.draw([region, everything], (16, 16))
    with pytest.raises(ArgumentError, match=r"shape 1 \(Gaussian"):
        targets.draw([region, Gaussian(7.5, 8, sigma=2)], (16, 16))
    far = targets.draw([region, Gaussian(13, 8, sigma=1)], (16, 16))
    assert (far[8, 1:7] == 0).all() and far.max() == 1
    forbidden = np.zeros((4, 4), bool)
    forbidden[0] = True
    targets.check(np.eye(4)[:, ::-1] * ~forbidden, "map", (4, 4), forbidden)
    with pytest.raises(ArgumentError, match="map: asks for 25.0% of its mass inside regions that are to be avoided"):
        targets.check(np.eye(4), "map", (4, 4), forbidden)


@pytest.mark.parametrize(
    "shapes, message",
    [
        ([], "0 everywhere"),
        ([Disc(4, 4, 2), Avoid(Box(0, 0, 8, 8))], "0 everywhere: it asks nobody to look anywhere"),
        ([Gaussian(100, 100, 1)], "0 everywhere"),
        ([Disc(4, 4, 2), Gaussian(4, 4, 0)], r"shape 1 \(Gaussian.*sigma: expected a number above 0"),
        ([Disc(float("nan"), 4, 2)], "x: expected a number"),
        ([Disc(4, 4, 2, value=1.5)], "value: expected 0 to 1, found 1.5"),
        ([Box(4, 0, 2, 8)], "expected left < right"),
    ],
)
def test_shapes_that_make_no_map(shapes, message):
    with pytest.raises(ArgumentError, match=message):
        targets.draw(shapes, (8, 8))


def test_files(tmp_path):
    """A dark map is brought to 1 and to the picture's size; an empty one and another aspect are refused by name."""
    grey = np.zeros((8, 16), np.uint8)
    grey[:, 8:] = 100
    Image.fromarray(grey).save(tmp_path / "map.png")
    read = targets.read(tmp_path / "map.png", (16, 32))
    assert read.shape == (16, 32) and read.max() == 1 and read[8, 31] == 1 and read[8, 0] == 0
    with pytest.raises(ArgumentError, match="map.png: a map of another aspect: 16 x 8, the picture is 16 x 16"):
        targets.read(tmp_path / "map.png", (16, 16))
    Image.fromarray(0 * grey).save(tmp_path / "black.png")
    with pytest.raises(ArgumentError, match="black.png: the map is 0 everywhere"):
        targets.read(tmp_path / "black.png", (8, 16))


def test_normalised():
    density = targets.normalised(np.array([[1.0, 3.0]]))
    assert density.tolist() == [[0.25, 0.75]]
    for bad in (np.zeros((2, 2)), np.array([[-1.0, 2.0]]), np.array([[np.nan, 2.0]])):
        with pytest.raises(ArgumentError):
            targets.normalised(bad)
