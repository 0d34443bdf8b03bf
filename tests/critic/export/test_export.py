"""`rahf export`: the file gives the checkpoint's numbers and gradients, in environments that have almost nothing."""

import json
import pathlib
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export as jax_export

import rahf
from rahf.cli import main as cli
from rahf.core import tree
from rahf.core.batch import Prediction
from rahf.core.errors import ExportError, ImageError
from rahf.critic import energy as energy_lib
from rahf.critic.export import archive, write
from rahf.critic.provenance import ModelMismatch
from rahf.diffusion import schedules
from rahf.diffusion.sample import universal_guidance
from rahf.diffusion.sample.options import GuidanceOptions
from tests.helpers import bare_reader
from tests.helpers.image_maker import encode, smooth

PROMPTS = ["a red cat on a blue mat", "two dogs", "one green bird and two cats."]


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
