"""Whole samplings against the pipelines of `diffusers`: 5 steps from the same noise; import and export."""

import json
import pathlib
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity with PyTorch needs PyTorch: pip install rahf[torch]")
pytest.importorskip("diffusers", reason="needs diffusers: pip install rahf[torch]")

import diffusers  # noqa: E402

import rahf  # noqa: E402
from rahf.diffusion import lora as lora_lib  # noqa: E402
from rahf.diffusion.published.export_folder import export_diffusers  # noqa: E402
from rahf.diffusion.published.import_folder import import_stable_diffusion  # noqa: E402
from tests.helpers import stable_diffusion_torch as theirs  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers"),
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
PROMPTS, NEGATIVE = ["a red cat", "dog"], "blur!"


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """Model directory of a kind, imported once."""
    folders: dict[str, pathlib.Path] = {}

    def of(kind: str) -> pathlib.Path:
        if kind not in folders:
            base = tmp_path_factory.mktemp("sd")
            import_stable_diffusion(theirs.save(kind, base / "published"), base / "model", license="mit")
            folders[kind] = base / "model"
        return folders[kind]

    return of


def noise(batch=2, height=8, width=8):
    return np.random.default_rng(5).standard_normal((batch, height, width, 4)).astype(np.float32)


def pictures():
    return np.random.default_rng(6).uniform(0, 1, (2, 16, 16, 3)).astype(np.float32)


def masks():
    """A rectangle on the grid of latents, of 2 pixels a cell: `diffusers` samples masks, this library takes maxima."""
    mask = np.zeros((2, 16, 16), np.float32)
    mask[:, 4:12, 6:14] = 1
    return mask


def nchw(x):
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def sampled_by_diffusers(kind, negative=NEGATIVE, **options):
    pipe = theirs.pipeline(kind)
    if kind == "inpainting":
        image, mask = pictures(), masks()
        masked = 2 * np.where(mask[..., None] > 0, 0.5, image).astype(np.float32) - 1
        mean = pipe.vae.encode(nchw(masked)).latent_dist.mean * pipe.vae.config.scaling_factor  # it would draw a sample
        options |= dict(image=nchw(image), mask_image=torch.from_numpy(mask)[:, None], masked_image_latents=mean)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pipe(
            prompt=PROMPTS,
            negative_prompt=None if negative is None else [negative] * 2,
            num_inference_steps=5,
            guidance_scale=4.0,
            height=16,
            width=16,
            latents=nchw(noise()),
            output_type="np",
            **options,
        ).images


@pytest.mark.parametrize("kind", theirs.KINDS)
def test_five_steps(kind, imported):
    pipe = rahf.diffusion.load(imported(kind))
    extra = dict(image=pictures(), mask_image=masks(), paste_back=False) if kind == "inpainting" else {}
    options = dict(num_inference_steps=5, guidance_scale=4.0, latents=noise(), **extra)
    ours = pipe(PROMPTS, negative_prompt=NEGATIVE, **options).images
    np.testing.assert_allclose(ours, sampled_by_diffusers(kind), atol=1e-4, rtol=0)
    if kind == "xl":  # no negative prompt is another condition than an empty one
        ours = pipe(PROMPTS, **options).images
        np.testing.assert_allclose(ours, sampled_by_diffusers(kind, negative=None), atol=1e-4, rtol=0)


@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_from_a_picture(strength, imported, monkeypatch):
    """With the mean of the picture's latents, of which `diffusers` would draw a sample."""
    module = diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img
    monkeypatch.setattr(module, "retrieve_latents", lambda output, **options: output.latent_dist.mean)
    monkeypatch.setattr(module, "randn_tensor", lambda shape, **options: nchw(noise()))
    published = diffusers.StableDiffusionImg2ImgPipeline(
        **theirs.pipeline("1.x").components, requires_safety_checker=False
    )
    published.set_progress_bar_config(disable=True)
    options = dict(num_inference_steps=5, guidance_scale=4.0, strength=strength)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = published(
            PROMPTS, image=nchw(pictures()), negative_prompt=[NEGATIVE] * 2, output_type="np", **options
        ).images
    pipe = rahf.diffusion.load(imported("1.x"))
    ours = pipe(PROMPTS, negative_prompt=NEGATIVE, image=pictures(), latents=noise(), **options).images
    np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=0)


def test_what_is_exported_loads_in_diffusers(imported, tmp_path):
    """Bit for bit the parameters that were published; the files are as strict to read back."""
    for kind in ("inpainting", "xl"):
        folder = export_diffusers(imported(kind), tmp_path / kind)
        pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
        published = theirs.pipeline(kind)
        assert type(pipe) is type(published) and type(pipe.scheduler) is type(published.scheduler)
        for part in ("unet", "vae", "text_encoder", *(["text_encoder_2"] if kind == "xl" else [])):
            ours, expected = getattr(pipe, part).state_dict(), getattr(published, part).state_dict()
            assert ours.keys() == expected.keys()
            assert all(torch.equal(ours[name], expected[name]) for name in expected)
        ids = lambda p: [p.tokenizer(text, padding="max_length", max_length=12).input_ids for text in PROMPTS]
        assert ids(pipe) == ids(published)
        for name, value in published.scheduler.config.items():
            if not name.startswith("_"):
                assert pipe.scheduler.config[name] == value, name


def test_sharded_half_precision_and_pickled_weights(imported, tmp_path):
    published = theirs.pipeline("1.x")
    reference = rahf.diffusion.load(imported("1.x")).params["unet"]["conv_in"]["kernel"]
    for name, options in {
        "sharded": dict(max_shard_size="20KB"),
        "fp16": dict(variant="fp16"),
        "pickled": dict(safe_serialization=False),
    }.items():
        folder = tmp_path / name
        if name == "pickled":  # new versions of transformers do not write them any more
            theirs.save("1.x", folder)
            (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
            torch.save(published.unet.state_dict(), folder / "unet" / "diffusion_pytorch_model.bin")
        else:
            theirs.save("1.x", folder, **options)
        import_stable_diffusion(folder, tmp_path / f"{name}-model", license="mit")
        kernel = rahf.diffusion.load(tmp_path / f"{name}-model").params["unet"]["conv_in"]["kernel"]
        np.testing.assert_array_equal(kernel, reference)
    assert (tmp_path / "sharded" / "unet" / "diffusion_pytorch_model.safetensors.index.json").is_file()
    assert (tmp_path / "fp16" / "unet" / "diffusion_pytorch_model.fp16.safetensors").is_file()


def test_the_record_and_a_scheduler_that_is_replaced(imported, tmp_path):
    folder = theirs.save("1.x", tmp_path / "published")
    (folder / "README.md").write_text("---\nlicense: openrail\n---\n")
    file = folder / "scheduler" / "scheduler_config.json"
    tree = json.loads(file.read_text())
    file.write_text(json.dumps(tree | {"_class_name": "PNDMScheduler", "skip_prk_steps": False}))
    result = import_stable_diffusion(folder, tmp_path / "model")
    record = json.loads((result.folder / "model.json").read_text())
    assert record["license"] == "openrail" and record["pipeline"] == "StableDiffusionPipeline"
    assert len(record["sha256"]["unet/diffusion_pytorch_model.safetensors"]) == 64
    assert "PNDMScheduler" in result.notes[0] and record["notes"] == list(result.notes)


LORA_KERNELS = (
    "unet/conv_in/kernel",
    "unet/conv_out/kernel",
    "unet/time_embedding/linear_1/kernel",
    "unet/down_blocks/0/resnets/0/conv1/kernel",
    "unet/down_blocks/0/attentions/0/proj_in/kernel",
    "unet/down_blocks/0/attentions/0/transformer_blocks/0/attn1/to_q/kernel",
    "unet/up_blocks/1/attentions/0/transformer_blocks/0/attn2/to_out/0/kernel",
    "unet/up_blocks/1/attentions/0/transformer_blocks/0/ff/net/2/kernel",
    "text_encoder/layer_0/query/kernel",
    "text_encoder/layer_1/wo/kernel",
)


@pytest.mark.parametrize("dialect", lora_lib.DIALECTS)
def test_adapters_change_both_pipelines_alike(dialect, imported, tmp_path):
    """Saved by rahf, loaded by diffusers: the pictures change by the same amount."""
    pytest.importorskip("peft", reason="diffusers loads adapters with peft: pip install rahf[torch]")
    pipe, rng = rahf.diffusion.load(imported("1.x")), np.random.default_rng(0)
    flat = lora_lib.flatten(pipe.params)
    draw = lambda *shape: (0.2 * rng.standard_normal(shape)).astype(np.float32)
    published = theirs.pipeline("1.x")
    # Published files name layers of the text encoder "text_model.encoder…". transformers 5 has no such module any more,
    # and diffusers then refuses every file with such layers, its own old ones, too.
    takes_text = hasattr(published.text_encoder, "text_model")
    shapes = {kernel: flat[kernel].shape for kernel in LORA_KERNELS if takes_text or kernel.startswith("unet/")}
    lora = lora_lib.Lora({k: lora_lib.Layer(draw(*s[:-1], 2), draw(2, s[-1]), 3.0) for k, s in shapes.items()})
    lora_lib.write(lora, tmp_path / "pytorch_lora_weights.safetensors", pipe, dialect)
    plain = sampled_by_diffusers("1.x")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        published.load_lora_weights(tmp_path, weight_name="pytorch_lora_weights.safetensors")
    try:
        changed = sampled_by_diffusers("1.x")
    finally:
        published.unload_lora_weights()
    pipe.params = lora_lib.merged(pipe.params, lora)
    options = dict(num_inference_steps=5, guidance_scale=4.0, latents=noise())
    ours = pipe(PROMPTS, negative_prompt=NEGATIVE, **options).images
    assert np.abs(changed - plain).max() > 0.05
    np.testing.assert_allclose(ours, changed, atol=1e-4, rtol=0)
