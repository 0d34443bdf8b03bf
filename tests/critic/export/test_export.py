"""`rahf export`: the file gives the checkpoint's numbers and gradients, in environments that have almost nothing."""

import dataclasses
import functools
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
from jax import export as jax_export

import rahf
from rahf import config as config_lib
from rahf.cli import main as cli
from rahf.core import tree
from rahf.core.batch import Prediction
from rahf.core.errors import CheckpointError, ExportError, ImageError, NotPredicted
from rahf.critic import energy as energy_lib
from rahf.critic import provenance
from rahf.critic.export import archive, read, write
from rahf.critic.networks import build
from rahf.critic.provenance import ModelMismatch, Quantiles
from rahf.diffusion import schedules
from rahf.diffusion.sample import universal_guidance
from rahf.diffusion.sample.options import GuidanceOptions
from rahf.nn import functional
from rahf.training import label_counts
from rahf.training.checkpoint import Checkpointer
from tests.helpers import bare_reader
from tests.helpers.image_maker import encode, smooth

PROMPTS = ["a red cat on a blue mat", "two dogs", "one green bird and two cats."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    return tmp_path_factory.mktemp("exports")


@pytest.fixture(scope="module")
def run(tiny_run, folder) -> pathlib.Path:
    """A run directory with a network that compiles fast."""
    copy = shutil.copytree(tiny_run, folder / "small", ignore=shutil.ignore_patterns("checkpoints"))
    config = config_lib.from_json((copy / "config.json").read_text())
    t5 = dataclasses.replace(config.model.t5, encoder_layers=1)
    heads = dict(
        heatmap_head=dataclasses.replace(config.model.heatmap_head, conv_widths=(), up_widths=(8,)),
        score_head=dataclasses.replace(config.model.score_head, conv_widths=()),
    )
    vit = dataclasses.replace(config.model.vit, depth=1)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, vit=vit, t5=t5, **heads))
    (copy / "config.json").write_text(config_lib.to_json(config))
    params = functional.init(build.build(config.model), seed=0)
    for name, part in params.items():  # the heads start with almost constant outputs
        if name.startswith(("heatmap_", "score_")):
            part["out"]["kernel"] = part["out"]["kernel"] * 20
    saver = Checkpointer(copy, keep=1)
    saver.save_best(7, params, {})
    saver.close()
    return copy


@pytest.fixture(scope="module")
def checkpoint(run):
    return rahf.load(run)


@pytest.fixture(scope="module")
def full(checkpoint, folder) -> pathlib.Path:
    return write.write_export(checkpoint, folder / "full.rahf", about="Made for a test.\n").file


@pytest.fixture(scope="module")
def critic(full):
    return rahf.load(full)


@pytest.fixture(scope="module")
def small(checkpoint, folder) -> pathlib.Path:
    """Scores only, weights in 16 bits."""
    return write.write_export(checkpoint, folder / "small.rahf", scores_only=True, bf16=True).file


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    return [smooth(h, w, seed) for seed, (h, w) in enumerate([(40, 60), (32, 32), (90, 33)])]


def test_it_computes_in_float32_on_every_device(critic, checkpoint, full):
    """A GPU multiplies float32 in TF32 unless a program says otherwise: a heatmap then differed by 0.014."""
    program = jax_export.deserialize(bytearray(archive.read_archive(full)[1]["functions/heatmaps.jax_export"]))
    text = str(program.mlir_module())
    lines = [
        line for line in text.splitlines() if " stablehlo.dot_general " in line or "stablehlo.convolution(" in line
    ]
    assert len(lines) > 10 and not [line for line in lines if "HIGHEST" not in line]


def test_it_gives_the_checkpoints_numbers(critic, checkpoint, pictures):
    prediction, expected = critic(pictures, PROMPTS), checkpoint(pictures, PROMPTS)
    for name, a, b in zip(Prediction._fields, prediction, expected):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=0, err_msg=name)
        assert a.dtype == np.float32
    assert prediction.provenance == expected.provenance and critic.model_id == checkpoint.model_id
    floats = [p.astype(np.float32) / 255 for p in pictures]
    np.testing.assert_allclose(critic(floats, PROMPTS).scores, checkpoint(floats, PROMPTS).scores, atol=1e-5)
    ours, theirs = (c.feedback(pictures[0], PROMPTS[0])[0].to_json() for c in (critic, checkpoint))
    assert ours.keys() == theirs.keys() and ours["model"] == theirs["model"]
    assert [w["word"] for w in ours["words"]] == [w["word"] for w in theirs["words"]]
    assert repr(critic).startswith("Critic('tiny', step 7, ")


def test_last_batch_compiles_nothing(critic, pictures):
    before = critic._forward._cache_size()
    for count in (3, 2, 1):
        critic(pictures[:count], PROMPTS[:count], batch_size=2)
    assert critic._forward._cache_size() - before <= 1


def test_gradients_equal_the_checkpoints(critic, checkpoint):
    """At another size than the network's, under jit and vmap."""
    weights = jnp.array([1.0, -2.0, 3.0, 0.5])
    pixels = jnp.asarray(np.stack([smooth(40, 60, 1), smooth(40, 60, 2)]), jnp.float32) / 255
    ids, mask = critic.tokens(PROMPTS[:2])

    def energy(which, x, ids, mask):
        return which.scores(x, ids, mask) @ weights

    expected = jax.jit(jax.grad(lambda x: energy(checkpoint, x, ids, mask).sum()))(pixels)
    assert np.abs(expected).max() > 1e-3
    gradient = jax.jit(jax.vmap(jax.grad(lambda x, i, m: energy(critic, x, i, m))))(pixels, ids, mask)
    np.testing.assert_allclose(gradient, expected, atol=1e-5)
    many = jax.tree.map(lambda p: jnp.stack([p, 0 * p]), critic.params)
    apart = jax.vmap(lambda p: critic.scores(pixels, ids, mask, p))(many)
    np.testing.assert_allclose(apart, [critic.scores(pixels, ids, mask), np.full((2, 4), 0.5)], atol=1e-5)
    with pytest.raises(TypeError, match="differentiable in its pixels, not in its parameters; train the run directory"):
        jax.grad(lambda p: critic.scores(pixels, ids, mask, p).sum())(critic.params)


def test_gradient_is_finite_for_constant_and_saturated_images(critic):
    ids, mask = critic.tokens("a red cat")
    gradient = jax.jit(jax.grad(lambda x: critic.scores(x, ids, mask).sum()))
    for value in (0.0, 0.5, 1.0):
        assert np.isfinite(gradient(jnp.full((1, 32, 32, 3), value))).all()


def test_guides_a_sampler_as_the_checkpoint_does(critic, checkpoint):
    """Forwards through the denoiser, backwards, repeated, recomputed for the gradient; in one compiled scan."""
    schedule = schedules.ddim(schedules.squaredcos_cap_v2(50), 3)
    options = GuidanceOptions(scale=0.5, backward_steps=2, recurrences=2, clean_range=(-1.0, 1.0))
    start = universal_guidance.noise(jax.random.key(0), 2, (24, 40, 3))
    guided = {}
    for name, one in {"file": critic, "run": checkpoint}.items():
        steer = jax.jit(
            lambda z, energy: universal_guidance.sample(
                lambda z, t, cond: 0.1 * z,
                schedule,
                z,
                energy=energy,
                decode=universal_guidance.unit_pixels,
                options=options,
                key=jax.random.key(1),
            )
        )
        guided[name] = steer(start, energy_lib.score(one, PROMPTS[:2], {"plausibility": 1.0, "overall": 2.0}))
    assert guided["file"].trace.guided[1:].all()  # all but the first step, of pure noise
    np.testing.assert_allclose(guided["file"].energy, guided["run"].energy, atol=1e-5)
    np.testing.assert_allclose(guided["file"].sample, guided["run"].sample, atol=1e-4)
    plain = universal_guidance.sample(lambda z, t, cond: 0.1 * z, schedule, start, key=jax.random.key(1))
    assert np.abs(plain.sample - guided["file"].sample).max() > 0.1


def test_rewards(critic, pictures):
    ids, mask = critic.tokens(PROMPTS[0])
    scores = critic.scores(pictures[1], ids, mask)
    reward = jax.jit(critic.reward({"overall": 0.5, "alignment": 0.5}))(pictures[1], ids, mask)
    np.testing.assert_allclose(reward, 0.5 * (scores[3] + scores[1]), atol=1e-6)
    assert critic.reward()(pictures[1][None], ids, mask).shape == (1,)
    with pytest.raises(ValueError, match="no score is called 'overal'. Did you mean 'overall'?"):
        critic.reward("overal")


def test_bad_input_is_named_as_by_a_checkpoint(critic, full):
    ids, mask = critic.tokens("a cat")
    with pytest.raises(ImageError, match=r"channels first \(CHW\)"):
        critic.scores(np.zeros((2, 3, 40, 40), np.float32), ids, mask)
    with pytest.raises(ImageError, match="pixels in 0..255 given as float"):
        critic.scores(np.full((1, 40, 40, 3), 255.0, np.float32), ids, mask)
    with pytest.raises(ImageError, match="there are none; give at least one image"):
        critic.scores(np.zeros((0, 40, 40, 3), np.float32), ids, mask)
    with pytest.raises(ValueError, match="the prompt is empty"):
        critic(np.zeros((4, 4, 3), np.uint8), " ")
    with pytest.raises(ValueError, match="cannot generate|constrained scoring only"):
        critic.feedback(np.zeros((4, 4, 3), np.uint8), "a cat", generate=True)
    with pytest.raises(ValueError, match="computes in float32, asked for bfloat16"):
        rahf.load(full, dtype="bfloat16")


def test_scores_only_in_16_bits(small, full, checkpoint, pictures):
    critic = rahf.load(small)
    manifest = json.loads(zipfile.ZipFile(small).read("manifest.json"))
    assert list(manifest["functions"]) == ["scores"] and manifest["weights"]["dtype"] == "bfloat16"
    names = set(tree.flatten(critic.params))
    assert not any(name.startswith(("decoder", "heatmap_", "output")) for name in names)
    assert {"embedding", "score_overall/out/kernel"} <= names and len(names) > 30
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(critic.params))
    assert small.stat().st_size < 0.6 * full.stat().st_size
    prediction, expected = critic(pictures, PROMPTS), checkpoint(pictures, PROMPTS)
    assert prediction.heatmaps is None and prediction.word_probabilities is None
    with pytest.warns(ModelMismatch):  # other weights, other model
        difference = np.abs(prediction.scores - expected.scores)
    assert 1e-6 < difference.max() < 0.1 and critic.model_id == f"{checkpoint.model_id}-bf16"
    ids, mask = critic.tokens("a cat")
    with pytest.raises(ValueError, match="exported with --scores-only: it has no heatmaps"):
        critic.heatmaps(pictures[0], ids, mask)
    with pytest.raises(ValueError, match="exported with --scores-only"):
        critic.feedback(pictures, PROMPTS)


def test_an_export_for_other_devices_is_refused(checkpoint, folder):
    written = write.write_export(checkpoint, folder / "cuda.rahf", scores_only=True, platforms=("cuda",))
    assert written.difference != written.difference  # could not be run here
    with pytest.raises(ExportError, match="cuda.rahf: exported for cuda, but JAX runs on cpu here; export it again"):
        rahf.load(written.file)
    with pytest.raises(ValueError, match="platforms: expected some of cpu, cuda, tpu, found abacus"):
        write.write_export(checkpoint, folder / "x.rahf", platforms=("abacus",))


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


def test_difference_is_checked_before_anything_is_written(checkpoint, folder, monkeypatch):
    taken = folder / "taken.rahf"
    taken.write_bytes(b"before")

    class Lying:
        def __call__(self, *_):
            return Prediction(None, np.zeros((3, 4), np.float32), None)

    monkeypatch.setattr(read, "critic_of_archive", lambda *_: Lying())
    with pytest.raises(ExportError, match="other numbers than the model .*nothing was written"):
        write.write_export(checkpoint, taken, scores_only=True, platforms=("cpu",), force=True)
    with pytest.raises(ExportError, match=r"exists and is no export, so it is left alone; .*--force \(force=True\)"):
        write.write_export(checkpoint, taken, scores_only=True, platforms=("cpu",))
    assert taken.read_bytes() == b"before"
    assert not [p for p in folder.iterdir() if p.name.startswith(".taken")]


def test_commands_take_the_file(run, checkpoint, full, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        write, "write_export", lambda critic, file, **options: used_options.update(options) or _written(critic, file)
    )
    used_options: dict = {}
    (tmp_path / "picture.png").write_bytes(encode(smooth(40, 60)))
    assert cli.main(["export", str(run), str(full), "--bf16", "--license", "CC0-1.0"]) == 0
    assert used_options == {
        "force": False,
        "name": None,
        "metrics": None,
        "scores_only": False,
        "bf16": True,
        "weight_license": "CC0-1.0",
        "about": None,
    }
    assert "no reference quantiles" in capsys.readouterr().out
    arguments = ["predict", str(full), str(tmp_path / "picture.png"), "--prompt", "a red cat"]
    assert cli.main([*arguments, "--out", str(tmp_path / "out")]) == 0
    predictions = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert predictions["model"] == checkpoint.model_id
    expected = checkpoint(tmp_path / "picture.png", "a red cat").scores[0]
    np.testing.assert_allclose(list(predictions["images"][0]["scores"].values()), expected, atol=1e-5)
    changed = tmp_path / "changed.rahf"
    data = full.read_bytes()
    changed.write_bytes(data[:5000] + b"?" + data[5001:])
    assert cli.main(["predict", str(changed), *arguments[2:]]) == 1
    assert capsys.readouterr().err.startswith(f"rahf: {changed}: ")


def _written(critic, file) -> write.WrittenExport:
    return write.WrittenExport(pathlib.Path(file), 1, critic.provenance, 0.0)


def test_an_exported_file_cannot_be_exported(critic, tmp_path):
    with pytest.raises(ValueError, match="an exported file already; give the run directory"):
        write.write_export(critic, tmp_path / "x.rahf")


def test_reader_needs_few_packages(full, checkpoint, pictures, tmp_path):
    arrays = bare_reader.read(full, [pictures[0], pictures[2]], PROMPTS[:2], tmp_path)
    expected = checkpoint([pictures[0], pictures[2]], PROMPTS[:2])
    for name, values in zip(Prediction._fields, expected):
        np.testing.assert_allclose(arrays[name], values, atol=1e-5, rtol=0, err_msg=name)
    ids, mask = checkpoint.tokens(PROMPTS[0])
    pixels = jnp.asarray(pictures[0], jnp.float32) / 255
    gradient = jax.grad(lambda x: checkpoint.scores(x, ids, mask).sum())(pixels)
    np.testing.assert_allclose(arrays["gradient"], gradient, atol=1e-5)


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


ESCAPES = "\x1b]0;OWNED\x07\x1b[2JMIT\nweights are free to use"


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


def test_only_an_export_is_replaced(checkpoint, small, run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(write, "_check_outputs", lambda *_: (0.0, ()))  # tested elsewhere
    for name, words in (("config.json", "exists and is no export"), ("notes.txt", "exists and is no export")):
        (tmp_path / name).write_text("{}")
        assert cli.main(["export", str(run), str(tmp_path / name)]) == 1
        assert words in capsys.readouterr().err and (tmp_path / name).read_text() == "{}"
    (tmp_path / "there").mkdir()
    for name in ("newdir/", "there", "there/"):
        assert cli.main(["export", str(run), f"{tmp_path}/{name}"]) == 1
        assert "is a folder; give the name of a file to write, such as" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "notes.txt", "there"]
    (tmp_path / "cut.rahf").write_bytes(small.read_bytes()[:1000])  # of an export that was interrupted in copying
    for file in (small, tmp_path / "cut.rahf"):
        write.check_replaceable(file, force=False)
    write.check_replaceable(tmp_path / "notes.txt", force=True)
    write.check_replaceable(tmp_path / "new.rahf", force=False)


def test_a_damaged_report_does_not_stop_an_export(checkpoint, tmp_path):
    """Odd values in `metrics.json` are left out of the card."""
    metrics = {
        "metrics": {"scores/overall/plcc": 10**400, "keywords/f1": 0.5, "scores/overall/srcc": "x"},
        "intervals": {"keywords/f1": [0.4, 10**400], "scores/overall/srcc": 3},
        "meta": {"model": f"best checkpoint of step {checkpoint.step}", "data": ESCAPES},
    }
    (tmp_path / "report" / "test").mkdir(parents=True)
    (tmp_path / "config.json").write_text("{}")
    for text, expected in (
        (json.dumps(metrics), None),
        (json.dumps(metrics | {"intervals": {"keywords/f1": [0.4, 10**400]}}), {"keywords/f1": 0.5}),
        ("[" * 100_000, None),
        (json.dumps({"metrics": 3, "meta": metrics["meta"]}), None),
    ):
        (tmp_path / "report" / "test" / "metrics.json").write_text(text)
        metrics_of_card = write._newest_metrics(tmp_path, checkpoint)
        assert (metrics_of_card and metrics_of_card["metrics"]) == expected
        if metrics_of_card:
            assert metrics_of_card["intervals"] == {} and metrics_of_card["meta"]["data"].isprintable()


def test_both_spellings_of_the_license_are_read(small, tmp_path):
    """Format 1 had another key in the manifest."""
    manifest, parts = archive.read_archive(small)
    old = {name: value for name, value in manifest.items() if name != "weight_license"}
    archive.write_archive(tmp_path / "old.rahf", parts, old | {"format": 1, "weight_licence": "CC0-1.0"})
    assert rahf.load(tmp_path / "old.rahf").provenance.weight_license == "CC0-1.0"
    assert manifest["format"] == 2 and rahf.load(small).provenance.weight_license == "not specified"


def test_quantiles_travel_with_the_model(run, checkpoint, tmp_path, pictures, monkeypatch):
    monkeypatch.setattr(write, "_check_outputs", lambda *_: (0.0, ()))  # tested elsewhere
    copied = shutil.copytree(run, tmp_path / "small")
    scores = np.random.default_rng(0).random((50, 4))
    quantiles = Quantiles.from_scores(scores, checkpoint.model_id, "fifty pictures")
    (copied / "quantiles.json").write_text(quantiles.to_json())
    critic = rahf.load(copied)
    assert critic.provenance.quantiles == quantiles
    written = write.write_export(
        critic, tmp_path / "with.rahf", scores_only=True, platforms=("cpu",), weight_license="MIT"
    )
    again = rahf.load(written.file)
    assert again.provenance.quantiles == quantiles and again.provenance.weight_license == "MIT"
    prediction = again(pictures[0], "a cat")
    np.testing.assert_allclose(prediction.percentiles, quantiles.percentiles(np.asarray(prediction.scores)))
    assert "fifty pictures" in zipfile.ZipFile(written.file).read("README.md").decode()
    (copied / "quantiles.json").write_text(quantiles.to_json().replace(checkpoint.model_id, "another"))
    assert rahf.load(copied).provenance.quantiles is None


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


def test_what_has_not_been_learnt_is_exported_as_such(run, tmp_path, capsys, monkeypatch):
    """A run that only saw plausibility: the file says so, and answers nothing else."""
    copied = shutil.copytree(run, tmp_path / "thumbs")
    names = ("heatmap/implausibility", "heatmap/misalignment", "score/alignment", "score/aesthetics", "score/overall")
    counts = dict.fromkeys([*names, "keyword"], 0) | {"score/plausibility": 40}
    label_counts.write(copied, counts)
    options = functools.partial(write.write_export, platforms=("cpu",))
    monkeypatch.setattr(write, "write_export", lambda critic, file, **_: options(critic, file, scores_only=True))
    assert cli.main(["export", str(copied), str(tmp_path / "thumbs.rahf")]) == 0
    assert "note: not learnt, and so not predicted: implausibility heatmap" in capsys.readouterr().out
    critic = rahf.load(tmp_path / "thumbs.rahf")
    assert critic.outputs == rahf.load(copied).outputs and critic.outputs.scores == ("plausibility",)
    scores = critic(smooth(32, 32), "a cat").scores[0]
    assert np.isfinite(scores[0]) and np.isnan(scores[1:]).all()
    with pytest.raises(NotPredicted, match="no example that it was trained on had such a label"):
        critic.score(smooth(32, 32), "a cat", "overall")
    card = zipfile.ZipFile(tmp_path / "thumbs.rahf").read("README.md").decode()
    assert "Not learnt, and so not predicted" in card
    (copied / "label_counts.json").write_text('{"score/overall": -1}')
    with pytest.raises(CheckpointError, match="label_counts.json: damaged"):
        rahf.load(copied)


def test_dead_models_are_said_at_the_export(run, tmp_path, capsys, monkeypatch):
    copied = shutil.copytree(run, tmp_path / "dead", ignore=shutil.ignore_patterns("checkpoints"))
    params = jax.tree.map(np.asarray, rahf.load(run).params)
    for name, part in params.items():
        if name.startswith("score_overall"):
            part["out"]["kernel"] = np.zeros_like(part["out"]["kernel"])
    saver = Checkpointer(copied, keep=1)
    saver.save_best(3, params, {})
    saver.close()
    config = json.loads((copied / "config.json").read_text())
    config["optimizer"]["learning_rate"] = 0.0
    (copied / "config.json").write_text(json.dumps(config))
    options = functools.partial(write.write_export, platforms=("cpu",))
    monkeypatch.setattr(write, "write_export", lambda critic, file, **_: options(critic, file, scores_only=True))
    assert cli.main(["export", str(copied), str(tmp_path / "dead.rahf")]) == 0
    out = capsys.readouterr().out
    assert "note: dead: optimizer.learning_rate is 0, so the weights are those that the run began with" in out
    assert "note: dead: overall score (0.5000): the same for 3 different pictures" in out
    assert "plausibility score (" not in out
