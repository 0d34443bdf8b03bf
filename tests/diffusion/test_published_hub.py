"""Importing a pipeline by its hub id: what is fetched, and that the model is the published one."""

import fnmatch
import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import rahf
from rahf.core.errors import PretrainedError
from rahf.core.tree import flatten
from rahf.diffusion.published.export_folder import export_diffusers
from rahf.diffusion.published.import_folder import import_stable_diffusion
from tests.helpers import stable_diffusion_maker as maker

COMMIT = "0123456789abcdef0123456789abcdef01234567"
UNET, TEXT = "unet/diffusion_pytorch_model", "text_encoder/model"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model directory."""
    return maker.save(tmp_path_factory.mktemp("published") / "model", maker.FLAT)


@pytest.fixture(scope="module")
def published(model, tmp_path_factory):
    """The same in the layout of diffusers."""
    repository = export_diffusers(model, tmp_path_factory.mktemp("hub") / "repository")
    for stem in (UNET, TEXT):  # each part is there twice, and as something that nobody needs
        tensors = load_file(repository / f"{stem}.safetensors")
        halves = {name: value.astype(np.float16) for name, value in tensors.items()}
        save_file(halves, repository / f"{stem}.fp16.safetensors")
        (repository / f"{stem}.bin").write_bytes(b"pickled")
    (repository / "safety_checker").mkdir()
    (repository / "safety_checker" / "model.safetensors").write_bytes(b"large")
    return repository


@pytest.fixture
def hub(published, tmp_path, monkeypatch):
    """The repository owner/tiny, and the names of the files that were fetched from it."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    repository, cache, fetched = tmp_path / "repository", tmp_path / COMMIT, []
    shutil.copytree(published, repository)

    def snapshot_download(repo, *, revision, allow_patterns):
        if repo != "owner/tiny" or revision not in ("main", COMMIT):
            raise OSError("404")
        for file in filter(lambda path: path.is_file(), repository.rglob("*")):
            name = str(file.relative_to(repository))
            if any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns):
                (cache / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, cache / name)
                fetched.append(name)
        return str(cache)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return repository, fetched


def weights(fetched):
    return sorted(name for name in fetched if name.endswith((".safetensors", ".bin")))


def test_the_published_parameters(hub, model, tmp_path):
    _, fetched = hub
    result = import_stable_diffusion("owner/tiny", tmp_path / "model", revision="main", license="mit")
    assert weights(fetched) == [f"{TEXT}.safetensors", f"{UNET}.safetensors", "vae/diffusion_pytorch_model.safetensors"]
    record = json.loads((result.folder / "model.json").read_text())
    assert (record["source"], record["revision"], record["license"]) == ("owner/tiny", COMMIT, "mit")
    ours, theirs = (flatten(rahf.diffusion.load(path).params) for path in (result.folder, model))
    assert ours.keys() == theirs.keys()
    for path, value in theirs.items():
        np.testing.assert_array_equal(ours[path], value, err_msg=path)


def test_variants(hub, tmp_path):
    """Half precision where there is nothing else, or where it is asked for; never PyTorch's files where others are."""
    repository, fetched = hub
    (repository / f"{TEXT}.safetensors").unlink()
    import_stable_diffusion("owner/tiny", tmp_path / "model", revision="main", license="mit")
    vae = "vae/diffusion_pytorch_model.safetensors"
    assert f"{TEXT}.fp16.safetensors" in fetched and f"{UNET}.fp16.safetensors" not in fetched and vae in fetched
    with pytest.raises(PretrainedError, match="vae"):  # has no such variant
        import_stable_diffusion("owner/tiny", tmp_path / "half", revision="main", variant="fp16")
    assert not (tmp_path / "half").exists() and not any(name.startswith("safety") for name in fetched)


def test_a_repository_that_is_not_there(hub, tmp_path):
    with pytest.raises(PretrainedError, match="owner/other: not a folder here, and the hub does not hand it out"):
        import_stable_diffusion("owner/other", tmp_path / "model")
    assert not (tmp_path / "model").exists()
