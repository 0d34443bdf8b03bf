"""A ControlNet in a pipeline: what it changes and when, what compiles, its folder, and a base that does not fit."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import rahf.diffusion
from rahf.cli import main as cli
from rahf.config import ControlNetConfig, UNetConfig
from rahf.core.errors import ArgumentError, CheckpointError, PretrainedError
from rahf.core.tree import flatten, unflatten
from rahf.diffusion import controlnet
from rahf.diffusion.generated import GeneratedImages
from rahf.saliency import targets
from rahf.steer import generate_files
from rahf.steer.generate_files import GenerateOptions
from tests.helpers import stable_diffusion_maker as maker

STEPS = dict(num_inference_steps=2)


@pytest.fixture(scope="module")
def pipe():
    return maker.pipeline()


def trained(pipe):
    """A ControlNet whose layers of zeros are ones of noise."""
    fresh = controlnet.initial(pipe.config.model, pipe.params["unet"])
    rng = np.random.default_rng(0)
    noisy = lambda path: path.startswith("controlnet_") and path.endswith("kernel")
    params = {
        path: jnp.asarray(rng.normal(0, 0.3, value.shape), jnp.float32) if noisy(path) else value
        for path, value in flatten(fresh.params).items()
    }
    return dataclasses.replace(fresh, params=unflatten(params), license="mit", name="trained")


def ramp(height=8, width=8):
    return np.linspace(0, 1, height * width, dtype=np.float32).reshape(height, width)


def test_control_in_a_pipeline(pipe):
    """Before training it changes no bit; trained it does, by the hint, by the scale of each step, and compiles once."""
    base = pipe("cat", **STEPS).images
    pipe.controlnet = controlnet.initial(pipe.config.model, pipe.params["unet"])
    np.testing.assert_array_equal(pipe("cat", control_image=ramp(), **STEPS).images, base)
    np.testing.assert_array_equal(pipe("cat", **STEPS).images, base)
    pipe.controlnet = trained(pipe)

    def drawn(scale=1.0, hint=None, **options):
        hint = ramp() if hint is None else hint
        return pipe("cat", control_image=hint, controlnet_conditioning_scale=scale, **STEPS, **options).images

    one = drawn()
    step = pipe._programs("step", "epsilon", None, True, False)
    compiled = step._cache_size()
    others = [base, drawn(0.5), drawn(hint=ramp()[::-1]), drawn([1.0, 0.0]), drawn([0.0, 1.0])]
    for number, image in enumerate(others):
        assert all(np.abs(image - other).max() > 1e-6 for other in [one, *others[:number]])
    np.testing.assert_array_equal(drawn(0.0), base)
    np.testing.assert_array_equal(drawn(control_guidance_end=0.5), drawn([1.0, 0.0]))
    np.testing.assert_array_equal(drawn(hint=np.repeat(ramp()[None, ..., None], 3, -1)), one)
    assert step._cache_size() == compiled


def test_guided_sampling_finds_the_scale_of_a_step_by_its_timestep(pipe, monkeypatch):
    """What the compiled program is given; `test_controlnet_parity.py` has the residuals of such a table."""
    calls, programs = [], pipe._programs

    def program(params, conditions, noise, seeds, guidance_scale, known, energy, options):
        calls.append(known.control)
        return GeneratedImages(jnp.zeros((1, 8, 8, 3)), None, None), jnp.zeros((1, 4, 4, 4))

    monkeypatch.setattr(pipe, "_programs", lambda kind, *rest: program if kind == "guided" else programs(kind, *rest))
    pipe.controlnet = trained(pipe)
    red = lambda pixels: pixels[..., 0].mean((1, 2))
    pipe("cat", control_image=ramp(), controlnet_conditioning_scale=[1.0, 0.5], reward=red, **STEPS)
    (control,) = calls
    # Two steps of DDIM, "leading" with an offset of 1, are those from 501 and from 1.
    assert control.scale.shape == (1000,) and control.scale[501] == 1.0 and control.scale[1] == 0.5
    assert np.count_nonzero(control.scale) == 2 and control.hint.shape == (1, 8, 8, 3)


def test_generate_by_a_saliency_map(pipe, tmp_path, monkeypatch):
    """The map of a file steers like the array; the PNG names map, ControlNet and scale; both are needed, or neither."""
    made = trained(pipe)
    folder, file = rahf.diffusion.save_controlnet(made, tmp_path / "control"), tmp_path / "map.png"
    Image.fromarray(np.rint(ramp(16, 16) * 255).astype(np.uint8)).save(file)
    options = GenerateOptions(2, saliency=str(file), controlnet=str(folder), saliency_scale=(1.0, 0.5), batch_size=1)
    (written,) = generate_files.generate_files(pipe, ["cat"], tmp_path / "out", options=options)
    with Image.open(written.path) as image:
        metadata, pixels = json.loads(image.text["rahf"]), np.asarray(image).astype(int)
    assert metadata["saliency"] == str(file) and metadata["saliency_scale"] == [1.0, 0.5]
    target = targets.read(file, (8, 8))
    expected = pipe("cat", control_image=target, controlnet_conditioning_scale=[1.0, 0.5], **STEPS).uint8[0]
    assert np.abs(pixels - expected).max() <= 1
    for one in (dict(saliency=str(file)), dict(controlnet=str(folder))):
        with pytest.raises(ArgumentError, match="expected both: a map, and the folder of the ControlNet"):
            generate_files.generate_files(pipe, ["cat"], tmp_path / "none", options=GenerateOptions(2, **one))
    wide = GenerateOptions(2, saliency=str(file), controlnet=str(folder), height=8, width=16)
    with pytest.raises(ArgumentError, match="map.png: a map of another aspect: 16 x 16, the picture is 16 x 8"):
        generate_files.generate_files(pipe, ["cat"], tmp_path / "none", options=wide)
    assert not (tmp_path / "none").exists()
    calls = []
    monkeypatch.setattr(generate_files, "generate_files", lambda *args, **named: calls.append(args) or [])
    arguments = ["generate", "model", "--prompt", "cat", "--out", "out", "--smap", "map.png", "--controlnet", "control"]
    assert cli.main([*arguments, "--saliency-scale", "1", "0.7"]) == 0
    options = calls[0][4]
    assert options.saliency == "map.png" and options.controlnet == "control" and options.saliency_scale == (1.0, 0.7)


def test_it_starts_as_the_way_down_of_the_unet(pipe):
    """All but the hint encoder and the layers of zeros is copied, and the outputs are 0."""
    params, unet = (flatten(x) for x in (trained(pipe).params, pipe.params["unet"]))
    fresh = flatten(controlnet.initial(pipe.config.model, pipe.params["unet"]).params)
    own = {path for path in fresh if path.startswith("controlnet_")}
    assert set(fresh) - own == {
        path for path in unet if not path.startswith(("up_blocks", "conv_norm_out", "conv_out"))
    }
    for path in set(fresh) - own:
        np.testing.assert_array_equal(fresh[path], unet[path])
    zero = {
        p
        for p in own
        if p.startswith(("controlnet_down_blocks", "controlnet_mid", "controlnet_cond_embedding/conv_out"))
    }
    assert all(not np.any(fresh[path]) for path in zero)
    assert any(np.any(fresh[path]) for path in own - zero) and np.any(params["controlnet_mid_block/kernel"])


def test_folder(pipe, tmp_path):
    """What is written is read again, license and all; a tensor too few is refused by its name."""
    made = trained(pipe)
    folder = rahf.diffusion.save_controlnet(made, tmp_path / "control")
    again = rahf.diffusion.load_controlnet(folder)
    assert again.config == made.config and again.license == "mit"
    jax.tree.map(np.testing.assert_array_equal, again.params, jax.device_get(made.params))
    tree = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(tree | {"layers_per_block": 2}))
    with pytest.raises(PretrainedError, match=r"down_blocks\.0\.attentions\.1\.\S+: missing"):
        rahf.diffusion.load_controlnet(folder)
    (folder / "config.json").write_text(json.dumps(tree | {"_class_name": "UNet2DConditionModel"}))
    with pytest.raises(PretrainedError, match="_class_name is 'UNet2DConditionModel', expected 'ControlNetModel'"):
        rahf.diffusion.load_controlnet(folder)
    with pytest.raises(PretrainedError, match="no ControlNet: expected config.json"):
        rahf.diffusion.load_controlnet(tmp_path)
    with pytest.raises(PretrainedError, match="exists already"):
        rahf.diffusion.save_controlnet(made, folder)


@pytest.mark.parametrize(
    "unet, options, message",
    [
        (dict(cross_attention_dim=16), {}, "cross_attention_dim is 16, the pipeline's U-Net has 8"),
        (dict(block_out_channels=(8, 16)), {}, r"block_out_channels is \(8, 16\)"),
        (dict(num_attention_heads=(2, 4)), {}, r"num_attention_heads is \(2, 4\)"),
        ({}, dict(conditioning_embedding_out_channels=(16,)), "makes one cell of 1 pixels, the pipeline's .* of 2"),
    ],
)
def test_a_controlnet_for_another_base(unet, options, message):
    base = maker.TINY
    fields = dict(conditioning_embedding_out_channels=(16, 32)) | options
    config = ControlNetConfig(dataclasses.replace(base.unet, **unet), **fields)
    with pytest.raises(CheckpointError, match=message):
        controlnet.check_base(controlnet.ControlNet(config, {}), base)


def test_what_counts_of_a_base():
    """Heads of a level without transformers are no misfit, nor are a mask's channels of an inpainting base."""
    unet = UNetConfig(num_attention_heads=(8, 8, 8, 8), cross_attention=(True, False, True, False))
    other = dataclasses.replace(unet, num_attention_heads=(8, 1, 8, 8))
    base = dataclasses.replace(rahf.config.StableDiffusionConfig(), unet=dataclasses.replace(unet, in_channels=9))
    controlnet.check_base(controlnet.ControlNet(ControlNetConfig(other), {}), base)


def test_hints():
    config = ControlNetConfig()
    assert controlnet.hints(ramp(), config, (8, 8)).shape == (1, 8, 8, 3)
    small = controlnet.hints(np.full((2, 16, 32), 255, np.uint8), config, (8, 16))
    assert small.shape == (2, 8, 16, 3) and small.dtype == np.float32 and (small == 1).all()
    with pytest.raises(ArgumentError, match="aspect is another one: 32 x 16, the picture is 16 x 16"):
        controlnet.hints(np.zeros((16, 32), np.float32), config, (16, 16))
    for bad in (2 * ramp(), np.full((8, 8), np.nan, np.float32)):
        with pytest.raises(ArgumentError, match=r"values in \[0,1\]"):
            controlnet.hints(bad, config, (8, 8))
    with pytest.raises(ArgumentError, match="found int64"):
        controlnet.hints(np.zeros((8, 8), np.int64), config, (8, 8))


def test_scales():
    assert controlnet.scales(0.7, 3).tolist() == pytest.approx([0.7] * 3)
    assert controlnet.scales(1.0, 4, 0.25, 0.75).tolist() == [0, 1, 1, 0]
    with pytest.raises(ArgumentError, match=r"a number, or 3, one per step, found \[1, 2\]"):
        controlnet.scales([1, 2], 3)
    with pytest.raises(ArgumentError, match="expected 0 <= start < end <= 1"):
        controlnet.scales(1.0, 3, 0.5, 0.5)


def test_a_control_image_without_a_controlnet():
    pipe = maker.pipeline(model=maker.FLAT)
    with pytest.raises(ArgumentError, match="this pipeline has no ControlNet"):
        pipe("cat", control_image=ramp())
