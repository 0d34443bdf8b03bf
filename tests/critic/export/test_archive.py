"""The container of an exported model: read completely or refused with a reason."""

import json
import pathlib
import re
import stat
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from rahf.core.errors import ExportError
from rahf.critic.export import archive

PARTS = {"weights.bin": bytes(range(256)) * 4, "functions/scores.bin": b"function", "README.md": b"# read me\n"}
ABOUT = {"rahf": "0.1.0", "name": "x"}


@pytest.fixture
def file(tmp_path) -> pathlib.Path:
    archive.write_archive(tmp_path / "model.rahf", PARTS, ABOUT)
    return tmp_path / "model.rahf"


def sealed(path: pathlib.Path, members: dict[str, bytes], manifest: dict | None = None, infos: dict | None = None):
    """A file whose seal is right, whatever is in it."""
    if manifest is not None:
        members = {"manifest.json": json.dumps(manifest).encode(), **members}
    with zipfile.ZipFile(path, "w") as archive_file:
        for name, data in members.items():
            info = (infos or {}).get(name) or zipfile.ZipInfo(name)
            archive_file.writestr(info, data)
        archive_file.comment = b"rahf sha256 " + b"0" * 64
    archive.seal(path)
    return path


def manifest_of(file: pathlib.Path) -> dict:
    return json.loads(zipfile.ZipFile(file).read("manifest.json"))


def test_round_trip(file, tmp_path):
    manifest, parts = archive.read_archive(file)
    assert parts == PARTS and manifest["format"] == archive.FORMAT and manifest["name"] == "x"
    assert manifest["parts"]["README.md"]["bytes"] == 10
    assert re.fullmatch("[0-9a-f]{64}", manifest["parts"]["README.md"]["sha256"])
    archive.write_archive(tmp_path / "again.rahf", PARTS, ABOUT)
    assert (tmp_path / "again.rahf").read_bytes() == file.read_bytes()  # no date, no chance
    assert {i.compress_type for i in zipfile.ZipFile(file).infolist()} == {zipfile.ZIP_STORED}
    assert zipfile.ZipFile(file).testzip() is None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.rahf", "model.rahf"]


def test_every_changed_byte_is_noticed(file, tmp_path):
    data = file.read_bytes()
    changed = tmp_path / "changed.rahf"
    stream = np.random.default_rng(0)
    borders = [0, 1, 10, 14, 26, 30, len(data) - 1, len(data) - 64, len(data) - 65, len(data) - 78, len(data) - 90]
    for at in [*borders, *stream.integers(0, len(data), 150)]:
        for bit in (1, 128):
            changed.write_bytes(data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :])
            with pytest.raises(ExportError, match="changed.rahf"):
                archive.read_archive(changed)


def test_the_changed_part_is_named(file, tmp_path):
    data = file.read_bytes()
    at = data.index(bytes(range(256)))
    file.write_bytes(data[:at] + b"!" + data[at + 1 :])
    with pytest.raises(ExportError, match="weights.bin"):
        archive.read_archive(file)
    members = {"manifest.json": json.dumps(manifest_of(file)).encode(), **PARTS, "README.md": b"# reed me\n"}
    with pytest.raises(ExportError, match="part 'README.md' was changed after the export; copy or export it again"):
        archive.read_archive(sealed(tmp_path / "other.rahf", members))


def test_truncated_empty_and_other_files(file, tmp_path):
    data = file.read_bytes()
    for length in (0, 1, 100, len(data) // 2, len(data) - 100):
        file.write_bytes(data[:length])
        with pytest.raises(ExportError, match="expected a file of `rahf export`. It is something else, or truncated"):
            archive.read_archive(file)
    file.write_bytes(data[:-1])
    with pytest.raises(ExportError, match="model.rahf"):
        archive.read_archive(file)
    file.write_bytes(data + b"more")
    with pytest.raises(ExportError, match="model.rahf"):
        archive.read_archive(file)
    with pytest.raises(ExportError, match="No such file"):
        archive.read_archive(tmp_path / "nowhere.rahf")
    with zipfile.ZipFile(file, "w") as other:
        other.writestr("a.txt", "text")
    with pytest.raises(ExportError, match="no exported model: it has no readable manifest.json"):
        archive.read_archive(file)


def test_newer_formats_are_refused(file, tmp_path):
    newer = manifest_of(file) | {"format": archive.FORMAT + 1, "rahf": "9.9"}
    message = (
        rf"format {archive.FORMAT + 1}, written by rahf 9.9; this reader knows formats up to {archive.FORMAT}. Inst"
    )
    with pytest.raises(ExportError, match=message):
        archive.read_archive(sealed(tmp_path / "newer.rahf", PARTS, newer))


@pytest.mark.parametrize(
    "name", ["../evil", "/etc/evil", "a/../../evil", "C:\\evil", "a\\evil", ".hidden", "a/", "a//b", "a b", "nul\0evil"]
)
def test_unsafe_names_are_refused(file, tmp_path, name):
    manifest = manifest_of(file)
    manifest["parts"][name] = manifest["parts"]["README.md"]
    unsafe = tmp_path / "unsafe.rahf"
    info = zipfile.ZipInfo("placeholder")
    info.filename = name  # the constructor would already clean it
    with pytest.raises(ExportError, match="safe name"):
        archive.read_archive(sealed(unsafe, {**PARTS, name: b"# read me\n"}, manifest, {name: info}))
    with pytest.raises(ExportError, match="not a safe name"):
        archive.write_archive(tmp_path / "x.rahf", {name: b""}, {})
    assert not (tmp_path / "x.rahf").exists()


def test_links_packed_added_and_missing_members_are_refused(file, tmp_path):
    manifest, file = manifest_of(file), tmp_path / "made.rahf"
    link = zipfile.ZipInfo("README.md")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with pytest.raises(ExportError, match="'README.md' is not a plain file"):
        archive.read_archive(sealed(file, PARTS, manifest, {"README.md": link}))
    packed = zipfile.ZipInfo("README.md")
    packed.compress_type = zipfile.ZIP_DEFLATED
    with pytest.raises(ExportError, match="compressed or encrypted"):
        archive.read_archive(sealed(file, PARTS, manifest, {"README.md": packed}))
    with pytest.raises(ExportError, match="'extra.bin' is not listed in its manifest"):
        archive.read_archive(sealed(file, {**PARTS, "extra.bin": b"x"}, manifest))
    fewer = {name: data for name, data in PARTS.items() if name != "README.md"}
    with pytest.raises(ExportError, match="part 'README.md' is missing"):
        archive.read_archive(sealed(file, fewer, manifest))
    with pytest.raises(ExportError, match="two of one name"):
        archive.read_archive(sealed(file, {**PARTS, "readme.md": b"x"}, manifest))
    for broken in ({"format": "1", "parts": {}}, {"format": 1}, {"format": 1, "parts": {"README.md": 3}}):
        with pytest.raises(ExportError, match="manifest.json"):
            archive.read_archive(sealed(file, PARTS, broken))


def test_a_failed_write_leaves_what_was_there(file, tmp_path, monkeypatch):
    before = file.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archive, "seal", full)
    with pytest.raises(ExportError, match="model.rahf: cannot be written .*No space left"):
        archive.write_archive(file, PARTS, {"name": "other"})
    assert file.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["model.rahf"]


def test_it_needs_the_standard_library_only():
    """A file can be checked where nothing is installed; and the package rahf itself brings in nothing."""
    path = pathlib.Path(archive.__file__)
    code = (
        "import sys, importlib.util as u\n"
        f"sys.path.insert(0, {str(path.parents[3])!r}); from rahf.critic.export import archive\n"
        "assert not {'numpy', 'jax'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True)
