"""Spectral volumes in files."""

import numpy as np
import pytest
import safetensors.numpy

from data_pipelines.video import volume as volume_lib
from data_pipelines.video.volume import SpectralVolume
from rahf.core.errors import DatasetError


def volume():
    rng = np.random.default_rng(0)
    spectrum = (rng.normal(size=(3, 2, 4, 2)) + 1j * rng.normal(size=(3, 2, 4, 2))).astype(np.complex64)
    return SpectralVolume(spectrum, 60, 24.0)


@pytest.mark.parametrize("name", ["v.npz", "v.safetensors"])
def test_round_trip(tmp_path, name):
    volume_lib.save(tmp_path / name, volume())
    loaded = volume_lib.load(tmp_path / name)
    np.testing.assert_array_equal(loaded.spectrum, volume().spectrum)
    assert (loaded.frames, loaded.fps, loaded.period) == (60, 24.0, 2.5)


@pytest.mark.parametrize("name", ["v.npz", "v.safetensors"])
def test_files_of_other_programs_may_lack_the_rate(tmp_path, name):
    channels = volume().channels
    if name.endswith("npz"):
        np.savez(tmp_path / name, spectrum=channels)
    else:
        safetensors.numpy.save_file({"spectrum": channels}, tmp_path / name)
    loaded = volume_lib.load(tmp_path / name)
    assert (loaded.frames, loaded.fps) == (150, 30.0)


def test_a_texture_and_its_terms():
    wave = np.cos(2 * np.pi * 2 * np.arange(10) / 10)
    of = volume_lib.of_texture(np.tile(wave[:, None, None, None], (1, 1, 1, 2)), 4, 5.0)
    np.testing.assert_allclose(of.spectrum[:, 0, 0, 0], [0, 0, 5, 0], atol=1e-5)
    assert of.period == 2.0


def bad_files(folder):
    def npz(name, **arrays):
        np.savez(folder / name, **arrays)
        return folder / name

    (folder / "text.npz").write_text("no archive")
    (folder / "empty.npz").write_bytes(b"")
    np.savez(folder / "pickle.npz", spectrum=np.array([{}], object))
    channels = volume().channels
    return [
        (folder / "none.npz", "No such file"),
        (folder, "directory"),
        (folder / "text.npz", "no spectral volume"),
        (folder / "empty.npz", "no spectral volume"),
        (folder / "pickle.npz", "no spectral volume.*allow_pickle"),
        (npz("other.npz", flow=channels), "spectrum"),
        (npz("shape.npz", spectrum=channels[..., :2]), r"\[3, 2, 4, 2\]; expected float \[K,h,w,4\]"),
        (npz("dtype.npz", spectrum=channels.astype(int)), "int64"),
        (npz("nan.npz", spectrum=np.full_like(channels, np.nan)), "NaN or infinity"),
        (npz("terms.npz", spectrum=channels, frames=3), "3 terms of 3 frames .* at most 2 terms"),
        (npz("rate.npz", spectrum=channels, fps=0.0), "positive rate"),
    ]


def test_bad_files_are_named(tmp_path):
    for path, message in bad_files(tmp_path):
        with pytest.raises(DatasetError, match=f"(?s){path}.*{message}"):
            volume_lib.load(path)


def test_other_names_are_not_written(tmp_path):
    with pytest.raises(DatasetError, match="npz or .safetensors"):
        volume_lib.save(tmp_path / "v.npy", volume())
    assert not list(tmp_path.iterdir())
