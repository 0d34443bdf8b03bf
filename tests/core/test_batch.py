"""`Batch`: what its description promises, of the fake ones that other tests rely on."""

import subprocess
import sys

import numpy as np
import pytest

from rahf.core import batch as batch_lib
from rahf.core.batch import Batch

SIZES = dict(batch_size=64, image_size=8, text_length=10, target_length=15, max_words=6)


@pytest.fixture(scope="module")
def fake():
    return batch_lib.fake(**SIZES, vocab_size=40, seed=3)


def test_names_say_their_polarity():
    assert batch_lib.SCORES == ("plausibility", "alignment", "aesthetics", "overall")  # high = good
    assert batch_lib.HEATMAPS == ("implausibility", "misalignment")  # high = bad


def test_spec_describes_every_field(fake):
    spec = batch_lib.spec(**SIZES)
    assert tuple(spec) == Batch._fields
    assert {name: (value.shape, value.dtype) for name, value in fake._asdict().items()} == spec
    assert spec["image"] == ((64, 8, 8, 3), np.dtype(np.uint8))
    assert spec["target_ids"][0] == spec["prompt_ids"][0] == (64, 15)
    assert spec["word_labels"][0] == (64, 6)


def test_fake_sequences_are_whole_and_padded(fake):
    for ids, mask in ((fake.text_ids, fake.text_mask), (fake.target_ids, fake.target_mask)):
        lengths = mask.sum(1)
        assert (mask == (np.arange(mask.shape[1]) < lengths[:, None])).all()
        assert (ids[np.arange(64), lengths - 1] == 1).all()  # the end of sequence counts
        assert ((ids == 0) == ~mask).all() and ((ids == 1).sum(1) == 1).all()
        assert len(set(lengths)) > 2 and not mask.all()
        assert ids.max() < 40


def test_fake_words_lead_to_their_pieces(fake):
    for i in range(64):
        count = fake.word_mask[i].sum()
        assert 2 <= count <= 6
        assert (fake.word_mask[i] == (np.arange(6) < count)).all()
        assert (fake.word_end[i, count:] == -1).all()
        target = []
        for end, label in zip(fake.word_end[i, :count], fake.word_labels[i, :count]):
            target += [fake.prompt_ids[i, end]] + ([] if label else [4])
        assert fake.target_ids[i, : len(target) + 1].tolist() == [*target, 1]
        assert fake.prompt_ids[i, count] == 1 and (fake.prompt_ids[i, count + 1 :] == 0).all()
    assert set(fake.word_labels[fake.word_mask]) == {0, 1}


def test_fake_labels_are_in_range(fake):
    assert set(np.unique(fake.heatmaps)) == {0, 85, 170, 255}
    assert fake.scores.min() >= 0 and fake.scores.max() <= 1
    assert fake.index.tolist() == list(range(64))
    assert fake.example_mask.all() and fake.score_mask.all() and fake.heatmap_mask.all()


def test_fake_depends_on_the_seed_alone():
    same, other = batch_lib.fake(seed=1), batch_lib.fake(seed=2)
    for name in ("image", "text_ids", "target_ids", "heatmaps", "scores"):
        assert (getattr(batch_lib.fake(seed=1), name) == getattr(same, name)).all()
        assert not np.array_equal(getattr(same, name), getattr(other, name))


def test_data_workers_need_no_jax():
    heavy = {"jax", "flax", "tensorflow", "torch"}
    program = f"import sys, rahf.core.batch, rahf.config, rahf.text; print({heavy} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr
