"""ControlNet against the PyTorch module of `diffusers`, through its folder and back."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity with PyTorch needs PyTorch: pip install rahf[torch]")
pytest.importorskip("diffusers", reason="needs diffusers: pip install rahf[torch]")

from diffusers import ControlNetModel, UNet2DConditionModel  # noqa: E402

from rahf.config import ControlNetConfig, StableDiffusionConfig, UNetConfig  # noqa: E402
from rahf.diffusion import controlnet as controlnet_lib  # noqa: E402
from rahf.diffusion import load_controlnet, save_controlnet, weights  # noqa: E402
from rahf.diffusion.networks import unet  # noqa: E402
from rahf.diffusion.published import configs  # noqa: E402
from rahf.diffusion.published.export_folder import controlnet_config  # noqa: E402
from rahf.nn import functional  # noqa: E402
from rahf.pretrained import files, strict  # noqa: E402
from tests.helpers.parity import disturb  # noqa: E402
from tests.helpers.stable_diffusion_maker import SD21_UNET, SDXL_UNET  # noqa: E402
from tests.helpers.stable_diffusion_torch import TINY_UNET, TWO_LEVELS, UNETS  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers"),
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
]
TOLERANCE = 1e-4


def nchw(x):
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def agree(ours, theirs):
    theirs = theirs.detach().numpy().transpose(0, 2, 3, 1)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE * max(1.0, np.abs(theirs).max()))


def modules(kind):
    """Random U-Net and ControlNet; all of its layers of zeros are disturbed."""
    torch.manual_seed(0)
    sizes = TINY_UNET | UNETS[kind] | TWO_LEVELS[kind == "xl"]
    if kind != "1.x":
        sizes["attention_head_dim"] = (2, 4)
    base = disturb(UNet2DConditionModel(**sizes))
    own = {name: value for name, value in sizes.items() if name != "up_block_types"}
    order = "bgr" if kind == "xl" else "rgb"
    control = ControlNetModel(
        **own, conditioning_embedding_out_channels=(8, 16), controlnet_conditioning_channel_order=order
    )
    return base, disturb(control)


@pytest.mark.parametrize("base", [UNetConfig(), SD21_UNET, SDXL_UNET], ids=["1.5", "2.1", "xl"])
def test_published_sizes(base):
    """Names and shapes of all tensors, none of which is allocated."""
    config = ControlNetConfig(base)
    fields = controlnet_config(config)
    with torch.device("meta"):
        module = ControlNetModel(**{name: value for name, value in fields.items() if name != "_class_name"})
    network = controlnet_lib.network(config, StableDiffusionConfig())
    _, shapes = functional.abstract(network.build)
    layout = weights.controlnet_pointwise(base.use_linear_projection)
    ours = {
        weights.tensor_name(path): weights.stored_shape(path, leaf.shape, layout)
        for path, leaf in functional.flatten(shapes).items()
    }
    assert ours == {name: tuple(value.shape) for name, value in module.state_dict().items()}
    if base == UNetConfig():
        assert sum(map(math.prod, ours.values())) == 361_279_120  # of the published ControlNets of 1.5


@pytest.mark.parametrize("kind", ["1.x", "xl"])
def test_controlnet(kind, tmp_path):
    """Residuals, and the U-Net's output with them at scale 0.7: 9 x 6 latents, hints of 18 x 12 pixels."""
    base, control = modules(kind)
    control.save_pretrained(tmp_path / "theirs")
    ours = load_controlnet(tmp_path / "theirs", license="openrail")
    config = configs.unet(dict(base.config), "unet/config.json")
    tensors = strict.Taker(files.from_arrays({n: v.detach().numpy() for n, v in base.state_dict().items()}), "unet")
    graphdef, shapes = functional.abstract(lambda: unet.UNet2DConditionModel(config, dtype=jnp.dtype("float32")))
    params = weights.take(tensors, shapes, weights.pointwise(config.use_linear_projection))
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((2, 9, 6, 4)).astype(np.float32)
    text = rng.standard_normal((2, 5, config.cross_attention_dim)).astype(np.float32)
    hint, steps = rng.uniform(size=(2, 18, 12, 3)).astype(np.float32), np.array([7, 981])
    pooled, sizes, added = None, None, {}
    if kind == "xl":
        pooled = rng.standard_normal((2, 8)).astype(np.float32)
        sizes = np.array([[72, 48, 0, 0, 72, 48], [100, 80, 3, 4, 72, 48]], np.float32)
        added = {"added_cond_kwargs": {"text_embeds": torch.from_numpy(pooled), "time_ids": torch.from_numpy(sizes)}}
    torch_steps, torch_text = torch.from_numpy(steps), torch.from_numpy(text)
    with torch.no_grad():
        down, mid = control(
            nchw(latents), torch_steps, torch_text, nchw(hint), conditioning_scale=0.7, return_dict=False, **added
        )
        expected = base(
            nchw(latents),
            torch_steps,
            torch_text,
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
            **added,
        ).sample

    network = controlnet_lib.network(ours.config, StableDiffusionConfig())

    @jax.jit
    def run(params, control_params, hint, latents, steps, conditions):
        control = controlnet_lib.Control(control_params, hint, np.float32(0.7), network)
        residuals = control.residuals(latents, steps, conditions)
        # A scale for each timestep of training: that of row 0 is 0.7, that of row 1 is 0.
        table = jnp.zeros(1000).at[7].set(0.7)
        of_table = dataclasses.replace(control, scale=table).residuals(latents, steps, conditions)
        return residuals, of_table, functional.merge(graphdef, params)(latents, steps, conditions, residuals)

    residuals, of_table, output = run(params, ours.params, hint, latents, steps, unet.Conditions(text, pooled, sizes))
    for one, other in zip(residuals.down, down, strict=True):
        agree(one, other)
    agree(residuals.mid, mid)
    np.testing.assert_allclose(of_table.mid[0], residuals.mid[0], rtol=0, atol=1e-5)
    assert not of_table.mid[1].any() and not of_table.down[0][1].any()
    agree(output, expected)
    again = ControlNetModel.from_pretrained(save_controlnet(ours, tmp_path / "ours"))
    for name, value in control.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert configs.controlnet(dict(again.config), "again") == ours.config
    assert (tmp_path / "ours" / "README.md").read_text().startswith('---\nlicense: "openrail"')
