"""What is in an exported file: parts, texts, the id of its model; and files that were changed."""

import dataclasses
import json
import pathlib
import re
import shutil
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy

import rahf
from rahf import config as config_lib
from rahf.cli import main as cli
from rahf.core import tree
from rahf.core.errors import ExportError
from rahf.critic import provenance
from rahf.critic.export import archive, read, write
from rahf.critic.provenance import ModelMismatch, Quantiles

ESCAPES = "\x1b]0;OWNED\x07\x1b[2JMIT\nweights are free to use"


def test_what_is_in_the_file(full, checkpoint):
    with zipfile.ZipFile(full) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    manifest = json.loads(parts["manifest.json"])
    assert manifest["platforms"] == ["cpu", "cuda", "tpu"] and manifest["vjp_order"] == 1
    assert set(manifest["parts"]) == set(parts) - {"manifest.json"}
    assert json.loads(parts["preprocessing.json"])["words"]["rule"] == r'[^,.?!":; ]+'
    config = json.loads(parts["config.json"])
    assert "/" not in config["workdir"] and "/" not in config["data"]["path"]
    card, licenses = parts["README.md"].decode(), parts["LICENSES.md"].decode()
    assert checkpoint.model_id in card and "## Intended use" in card and "Not evaluated" in card
    assert "## About\n\nMade for a test.\n\n## Intended use" in card
    assert "Apache-2.0" in licenses and "not specified" in licenses
    size = tree.count(checkpoint.params) * 4
    assert len(parts["weights.safetensors"]) > size  # weights are here …
    assert sum(len(parts[f]) for f in manifest["functions"].values()) < 3 * size  # … and not in the functions
    for name, file in manifest["functions"].items():
        function = jax.export.deserialize(bytearray(parts[file]))
        assert function.platforms == ("cpu", "cuda", "tpu") and function.has_vjp(), name
        shapes = jax.tree.leaves(function.in_avals)
        assert str(shapes[len(jax.tree.leaves(checkpoint.params))].shape) == "(b, 32, 32, 3)"


def test_no_path_of_this_machine_is_in_the_file(full, small, run):
    here = [pathlib.Path(__file__).parents[3], pathlib.Path.home(), pathlib.Path.cwd(), pathlib.Path(sys.prefix), run]
    for file in (full, small):
        with zipfile.ZipFile(file) as archived:
            for name in archived.namelist():
                data = archived.read(name)
                assert [str(path) for path in here if f"{path}/".encode() in data] == [], name
                assert not re.search(rb"/[\w.-]+\.py\b", data), name  # nor of the script that called the export


def test_the_same_model_gives_the_same_bytes_from_any_folder_and_script(run, tmp_path):
    metrics = {"metrics": {"scores/overall/plcc": 0.5}}
    files = []
    for place, line in (("home/ann", 1), ("srv/jobs/7", 30)):
        copy = shutil.copytree(run, tmp_path / place / run.name)
        config = config_lib.from_json((copy / "config.json").read_text())
        data = dataclasses.replace(config.data, path=str(tmp_path / place / "data" / "demo"))
        config = dataclasses.replace(config, workdir=str(copy), data=data)
        (copy / "config.json").write_text(config_lib.to_json(config))
        files.append(copy.parent / "model.rahf")
        copy = copy.rename(copy.with_name(f"moved {line}"))  # the config still names the folder it was trained in
        meta = {"data": f"{data.path}, split test, 8 of 8 examples", "model": "best checkpoint of step 7"}
        program = "\n" * line + "write.write_export(critic, file, **options)"
        options = {"scores_only": True, "platforms": ("cuda",), "metrics": metrics | {"meta": meta}}
        names = {"write": write, "critic": rahf.load(copy), "file": files[-1], "options": options}
        exec(compile(program, str(copy.parent / "script.py"), "exec"), names)
    assert rahf.load(copy).name == "moved 30"
    assert archive.read_archive(files[-1])[0]["name"] == run.name
    first, second = (file.read_bytes() for file in files)
    assert first == second
    assert b"demo, split test, 8 of 8 examples (best checkpoint of step 7" in first


def test_the_model_id_must_belong_to_the_weights(full, checkpoint, tmp_path):
    manifest, parts = archive.read_archive(full)
    other = tree.flatten(checkpoint.params)
    name = "score_overall/out/kernel"
    other = {path: np.asarray(leaf) * (0.5 if path == name else 1) for path, leaf in other.items()}
    manifest["weights"].pop("sha256_with_id")  # as in files of version 0
    mixed = {
        "weights": (manifest, parts | {"weights.safetensors": safetensors.numpy.save(other)}),
        "id": (manifest | {"model_id": "demo-2500-6b6c3ac1b0a9"}, parts),
    }
    for what, (about, content) in mixed.items():
        file = tmp_path / f"{what}.rahf"
        archive.write_archive(file, content, about)
        with pytest.raises(ExportError, match=f"{what}.rahf: its manifest.json says .*parts of two models were put"):
            rahf.load(file)


def test_the_model_id_of_a_file_with_fewer_and_shorter_weights(small, tmp_path):
    manifest, parts = archive.read_archive(small)
    weights = tree.flatten(read.read_weights("small.rahf", parts["weights.safetensors"]))
    weights["score_overall/out/kernel"] = (weights["score_overall/out/kernel"] * 1.5).astype(jnp.bfloat16)
    config = parts["config.json"].replace(b'"heads": 2', b'"heads": 4', 1)
    assert config != parts["config.json"]
    mixed = {
        "weights": (manifest, parts | {"weights.safetensors": safetensors.numpy.save(weights)}),
        "id": (manifest | {"model_id": "demo-2500-6b6c3ac1b0a9-bf16"}, parts),
        "network": (manifest, parts | {"config.json": config}),
    }
    for what, (about, content) in mixed.items():
        archive.write_archive(tmp_path / f"{what}.rahf", content, about)
        with pytest.raises(ExportError, match=f"{what}.rahf: its manifest.json says .*parts of two models were put"):
            rahf.load(tmp_path / f"{what}.rahf")
    stored = {name: value for name, value in manifest["weights"].items() if name != "sha256_with_id"}
    archive.write_archive(tmp_path / "old.rahf", parts, manifest | {"weights": stored})
    assert rahf.load(tmp_path / "old.rahf").model_id == manifest["model_id"]


def test_the_model_id_of_a_file_without_what_serves_learning_only(full, checkpoint):
    manifest, _ = archive.read_archive(full)
    manifest["weights"].pop("sha256_with_id")
    model = dataclasses.replace(checkpoint.config.model, tag_head=True)
    config = dataclasses.replace(checkpoint.config, model=model)
    read._check_model_id("x.rahf", manifest, config, checkpoint.params, checkpoint.tokenizer)
    complete = {**checkpoint.params, "tags": {"kernel": np.zeros(3, np.float32)}}
    with pytest.raises(ExportError, match="parts of two models"):
        read._check_model_id("x.rahf", manifest, config, complete, checkpoint.tokenizer)


def test_malformed_files_with_right_checksums_are_refused(small, tmp_path):
    manifest, parts = archive.read_archive(small)
    scores = manifest["functions"]["scores"]
    altered = tmp_path / "altered.rahf"

    def refused(message: str, changes: dict | None = None, part: str = "", data: bytes = b""):
        archive.write_archive(altered, parts | ({part: data} if part else {}), manifest | (changes or {}))
        with pytest.raises(ExportError, match=f"altered.rahf: {message}"):
            rahf.load(altered)

    for name, value in {
        "functions": [], "platforms": "cpu", "weight_license": 3, "step": "7", "name": None, "model_id": ["x"],
    }.items():  # fmt: skip
        refused("its manifest.json is damaged", {name: value})
    refused("its manifest.json is damaged", {"functions": {"scores": 3}})
    refused("its manifest.json is damaged", {"platforms": 5})
    refused("its manifest.json names no format", {"format": 0})
    refused("its manifest.json names no format", {"format": 10**400})
    refused("its manifest.json is damaged", {"functions": ["a"]})
    refused("reference quantiles are damaged", part="quantiles.json", data=b"[" * 100_000)
    refused("weights.safetensors cannot be read|is malformed", part="weights.safetensors", data=parts[scores])
    refused("lacks 'scores'", {"functions": {}})
    refused("lacks 'functions/other'", {"functions": {"scores": "functions/other"}})
    refused("exported by rahf .* prepares images or prompts otherwise", {"preprocessing_hash": "0"})
    refused(f"{scores}: jax .* cannot read it", part=scores, data=parts[scores][:1000])
    refused("weights.safetensors cannot be read", part="weights.safetensors", data=b"\xff" * 100)
    header = b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'
    hostile = len(header).to_bytes(8, "little") + header
    refused("weights.safetensors cannot be read", part="weights.safetensors", data=hostile)
    nested = {"a": np.zeros(1, np.float32), "a/b": np.zeros(1, np.float32)}
    refused("weights.safetensors cannot be read", part="weights.safetensors", data=safetensors.numpy.save(nested))
    refused("reference quantiles are damaged", part="quantiles.json", data=b"[]")
    refused("tokenizer.model", part="tokenizer.model", data=b"no vocabulary")
    refused("its manifest.json is damaged", {"not_learnt": "score/overall"})
    stored = safetensors.deserialize(parts["weights.safetensors"])
    weights = {name: np.zeros(tensor["shape"], np.float32) for name, tensor in stored}
    name = next(iter(weights))
    weights[name][...] = np.nan
    message = f"{name}: not finite .NaN or infinite.; export a model that has not diverged"
    refused(message, part="weights.safetensors", data=safetensors.numpy.save(weights))
    for data in (b"\xff\xfe", b"[]", b"{", b'{"model": 3}', b"[" * 100_000, b'{"model": {"family": []}}'):
        archive.write_archive(altered, parts | {"config.json": data}, manifest)
        with pytest.raises(config_lib.ConfigError, match="altered.rahf: config.json"):
            rahf.load(altered)


def test_texts_of_a_file_are_one_printable_line(small, tmp_path, caplog, capsys):
    manifest, parts = archive.read_archive(small)
    manifest["weights"].pop("sha256_with_id")
    file = tmp_path / "e.rahf"
    archive.write_archive(file, parts, manifest | {"weight_license": ESCAPES, "name": ESCAPES, "model_id": ESCAPES})
    critic = rahf.load(file)
    shown = [critic.name, critic.model_id, critic.provenance.weight_license, *caplog.messages]
    assert len(shown) == 4 and all(text.isprintable() for text in shown)
    archive.write_archive(file, {}, {"format": 9, "rahf": ESCAPES})
    assert cli.main(["predict", str(file), "a.png", "--prompt", "a"]) == 1
    error = capsys.readouterr().err
    assert "format 9, written by rahf" in error and error.rstrip("\n").isprintable()


def test_both_spellings_of_the_license_are_read(small, tmp_path):
    """Format 1 had another key in the manifest."""
    manifest, parts = archive.read_archive(small)
    old = {name: value for name, value in manifest.items() if name != "weight_license"}
    archive.write_archive(tmp_path / "old.rahf", parts, old | {"format": 1, "weight_licence": "CC0-1.0"})
    assert rahf.load(tmp_path / "old.rahf").provenance.weight_license == "CC0-1.0"
    assert manifest["format"] == 2 and rahf.load(small).provenance.weight_license == "not specified"


def test_a_model_is_its_weights(run, checkpoint, full, tmp_path):
    """Under another name or exported it is the same model: one id, its percentiles, no warning of a mismatch."""
    scores = np.random.default_rng(0).random((20, 4))
    renamed = shutil.copytree(run, tmp_path / "another name")
    (renamed / "quantiles.json").write_text(Quantiles.from_scores(scores, checkpoint.model_id, "twenty").to_json())
    critic = rahf.load(renamed)
    assert critic.name == "another name" and critic.model_id == checkpoint.model_id == rahf.load(full).model_id
    assert critic.provenance.quantiles is not None
    config = json.loads((renamed / "config.json").read_text())  # as a run that goes on under its new name
    config["workdir"], config["model"]["remat"] = str(renamed), "block"
    (renamed / "config.json").write_text(json.dumps(config))
    moved = rahf.load(renamed)
    assert moved.model_id.startswith("another name-7-") and moved.provenance.quantiles is not None
    same = provenance.ScoreArray(scores, moved.provenance) - provenance.ScoreArray(scores, checkpoint.provenance)
    assert same.provenance.scale == checkpoint.provenance.scale  # no ModelMismatch, which would be an error here
    other = dataclasses.replace(checkpoint.provenance, model_id=f"{checkpoint.model_id}-bf16")
    with pytest.warns(ModelMismatch):
        provenance.ScoreArray(scores, other) - provenance.ScoreArray(scores, checkpoint.provenance)
