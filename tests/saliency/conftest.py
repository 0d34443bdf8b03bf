import pytest

from tests.helpers import gaze_maker


@pytest.fixture(scope="package")
def gaze_data(tmp_path_factory):
    """A prepared dataset of small pictures."""
    return gaze_maker.make(tmp_path_factory.mktemp("gaze"))


@pytest.fixture(scope="package")
def saliency_run(gaze_data, tmp_path_factory):
    """A run of two steps over the cached maps of a frozen tower."""
    from rahf import registry

    workdir = tmp_path_factory.mktemp("runs") / "gaze"
    registry.train(gaze_maker.config(gaze_data, workdir, cache_tower=True))
    return workdir


@pytest.fixture(scope="package")
def saliency_model(saliency_run):
    import rahf

    return rahf.load(saliency_run)
