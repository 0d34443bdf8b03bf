"""The critic inside PyTorch: the same scores and gradients as in JAX, which reach a generator."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.helpers.image_maker import smooth

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install rahf[torch]")

from rahf.core.errors import ImageError  # noqa: E402
from rahf.interop import torch as interop  # noqa: E402
from rahf.text.prompts import PromptWarning  # noqa: E402

PROMPTS = ["a red cat on a blue mat", "two dogs"]


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """[2,3,40,60] float32 in [0,1]."""
    return np.stack([np.moveaxis(smooth(40, 60, s), -1, 0) for s in (1, 2)]).astype(np.float32) / 255


@pytest.fixture(scope="module")
def all_scores(tiny_critic):
    return interop.as_torch(tiny_critic)


def in_jax(critic, pixels, weights):
    """Scores, and the gradient of their weighted sum, by JAX alone."""
    ids, mask = critic.tokens(PROMPTS)

    def energy(x):
        scores = critic.scores(jnp.moveaxis(x, 1, -1), ids, mask)
        return (scores * weights).sum(), scores

    (_, scores), gradient = jax.value_and_grad(energy, has_aux=True)(jnp.asarray(pixels))
    return np.asarray(scores), np.asarray(gradient)


def test_scores_and_gradients_equal_those_of_jax(tiny_critic, all_scores, pixels):
    weights = np.array([[1.0, -2.0, 3.0, 0.5], [0.5, 1.0, -1.0, 2.0]], np.float32)
    expected, gradient = in_jax(tiny_critic, pixels, weights)
    assert np.abs(gradient).max() > 1e-3
    images = torch.from_numpy(pixels.copy()).requires_grad_()
    scores = all_scores(images, PROMPTS)
    assert scores.shape == (2, 4) and scores.dtype == torch.float32 and scores.requires_grad
    np.testing.assert_allclose(scores.detach().numpy(), expected, atol=1e-6)
    (scores * torch.from_numpy(weights)).sum().backward()
    assert images.grad.shape == images.shape and images.grad.dtype == torch.float32
    np.testing.assert_allclose(images.grad.numpy(), gradient, atol=1e-5)


@pytest.mark.parametrize("kind", ["float64", "float16", "bfloat16", "channels_last", "strided", "uint8"])
def test_types_and_layouts(all_scores, pixels, kind):
    images = torch.from_numpy(pixels.copy())
    reference = images.clone().requires_grad_()
    expected = all_scores(reference, PROMPTS)
    expected.sum().backward()
    if kind == "uint8":
        whole = (images * 255).round().byte()  # it becomes the square that the critic sees
        expected = all_scores.critic(whole.movedim(1, -1), PROMPTS).scores
        np.testing.assert_allclose(all_scores(whole, PROMPTS), expected, atol=1e-5)
        return
    if kind == "channels_last":
        converted = images.to(memory_format=torch.channels_last)
    elif kind == "strided":
        converted = torch.empty(2, 3, 40, 120)[..., ::2].copy_(images)
        assert not converted.is_contiguous()
    else:
        converted = images.to(getattr(torch, kind))
    converted = converted.detach().requires_grad_()
    scores = all_scores(converted, PROMPTS)
    scores.sum().backward()
    tolerance = {"float16": 2e-3, "bfloat16": 2e-2}.get(kind, 1e-6)
    np.testing.assert_allclose(scores.detach(), expected.detach(), atol=tolerance)
    assert converted.grad.dtype == converted.dtype and converted.grad.device == converted.device
    scale = float(reference.grad.abs().max())
    np.testing.assert_allclose(converted.grad.float() / scale, reference.grad / scale, atol=max(20 * tolerance, 1e-5))


def test_one_score_one_image_one_prompt(tiny_critic, all_scores, pixels):
    images = torch.from_numpy(pixels.copy())
    reward = interop.as_torch(tiny_critic, {"overall": 2.0, "alignment": -1.0})
    every = all_scores(images, PROMPTS[0])
    scores = reward(images, PROMPTS[0])
    assert scores.shape == (2,)
    np.testing.assert_allclose(scores, 2 * every[:, 3] - every[:, 1], atol=1e-6)
    one = reward(images[1], PROMPTS[0])
    assert one.shape == ()
    np.testing.assert_allclose(one, scores[1], atol=1e-6)


def test_a_generator_learns_from_it(tiny_critic, pixels):
    """Gradients arrive in the parameters, and steps along them raise the reward."""
    torch.manual_seed(0)
    start = torch.from_numpy(pixels.copy())
    generator = torch.nn.Conv2d(3, 3, 3, padding=1)
    optimizer = torch.optim.Adam(generator.parameters(), 0.02)
    reward = interop.as_torch(tiny_critic, "overall")
    seen = []
    for _ in range(12):
        images = torch.sigmoid(generator(start))
        value = reward(images, PROMPTS).mean()
        seen.append(float(value.detach()))
        optimizer.zero_grad()
        (-value).backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in generator.parameters())
        optimizer.step()
    assert seen[-1] > seen[0] + 1e-3


def test_dlpack_copies_nothing_where_memory_fits():
    memory = np.zeros(4096 + 16, np.float32)
    offset = (-memory.ctypes.data // 4) % 16  # to a border of 64 bytes
    tensor = torch.from_numpy(memory[offset : offset + 4096]).reshape(2, 2048)
    array = interop.to_jax(tensor)
    assert array.unsafe_buffer_pointer() == tensor.data_ptr()
    back = interop.to_torch(array, torch.device("cpu"))
    assert back.data_ptr() == tensor.data_ptr() and back.dtype == torch.float32
    assert interop.to_jax(tensor.double()).dtype == jnp.float32


def test_rewards_in_the_shapes_of_trainers(tiny_critic, all_scores, pixels):
    images = torch.from_numpy(pixels.copy())
    every = all_scores(images, PROMPTS)
    rewards, logged = interop.policy_reward(tiny_critic, "alignment")(images * 1.0, tuple(PROMPTS), ({}, {}))
    assert rewards.shape == (2,) and not rewards.requires_grad and rewards.device == images.device
    np.testing.assert_allclose(rewards, every[:, 1], atol=1e-6)
    np.testing.assert_allclose(logged["aesthetics"], every[:, 2], atol=1e-6)
    channels_last = np.moveaxis(pixels, 1, -1)
    np.testing.assert_array_equal(interop.policy_reward(tiny_critic, "alignment")(channels_last, PROMPTS)[0], rewards)
    outside = (images * 1.4 - 0.2).requires_grad_()
    rewards, logged = interop.differentiable_reward(tiny_critic, "alignment")(outside, PROMPTS, None)
    rewards.sum().backward()
    assert logged == {} and (outside.grad[(outside < 0) | (outside > 1)] == 0).all()
    assert outside.grad.abs().max() > 0


def test_bad_input_is_named(tiny_critic, all_scores):
    with pytest.raises(ImageError, match=r"shape \(2, 40, 60, 3\), expected \[B,3,H,W\].*channels last \(HWC\), use"):
        all_scores(torch.zeros(2, 40, 60, 3), PROMPTS)
    with pytest.raises(ImageError, match="images: floats from 255 to 255, expected 0..1; pixels in 0..255"):
        all_scores(torch.full((1, 3, 8, 8), 255.0), "a cat")
    with pytest.raises(ImageError, match="images: pixels are not finite"):
        all_scores(torch.full((1, 3, 8, 8), float("nan")), "a cat")
    with pytest.raises(ImageError, match="int64; expected uint8 0..255 or floats"):
        all_scores(torch.zeros(1, 3, 8, 8, dtype=torch.int64), "a cat")
    with pytest.raises(TypeError, match=r"expected a tensor \[B,3,H,W\], found numpy.ndarray"):
        all_scores(np.zeros((1, 3, 8, 8)), "a cat")
    with pytest.raises(ValueError, match="2 images but 1 prompts"):
        all_scores(torch.zeros(2, 3, 8, 8), ["a cat"])
    with pytest.raises(ValueError, match="prompt is empty"):
        all_scores(torch.zeros(2, 3, 8, 8), "")
    with pytest.raises(ValueError, match="Did you mean 'overall'"):
        interop.as_torch(tiny_critic, "overal")
    with pytest.warns(PromptWarning, match="not read: "):
        all_scores(torch.zeros(1, 3, 8, 8), "cat " * 40)
    with pytest.raises(RuntimeError, match="does not require grad|once_differentiable"):
        images = torch.zeros(1, 3, 8, 8, requires_grad=True)
        (gradient,) = torch.autograd.grad(all_scores(images, "a cat").sum(), images, create_graph=True)
        gradient.sum().backward()


def test_trainers_rewards_check_before_they_clip(tiny_critic):
    for reward in (interop.policy_reward(tiny_critic), interop.differentiable_reward(tiny_critic)):
        for images, words in (
            (torch.linspace(-1, 1, 192).reshape(1, 3, 8, 8), "pixels in -1..1"),
            (torch.full((1, 3, 8, 8), 200.0), "pixels in 0..255 given as float"),
            (torch.zeros(1, 8, 8, 3), "channels last"),
            (torch.zeros(1, 3, 8, 8, dtype=torch.int8), "int8; expected uint8"),
            ([Image.new("RGB", (8, 8))], "expected a tensor .* found builtins.list"),
            (
                np.zeros((1, 3, 8, 8), np.float32),
                "found numpy.ndarray|looks like channels first",
            ),
            (np.zeros((8, 8), np.float32), "found numpy.ndarray|expected .B,H,W,3."),
        ):
            with pytest.raises((ImageError, TypeError), match=words):
                reward(images, ["a cat"])
        images = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8)
        as_floats = reward(images / 255, ["a cat"])[0]
        torch.testing.assert_close(reward(images, ["a cat"])[0], as_floats, atol=0.01, rtol=0)


def test_tensors_given_to_the_critic_itself(tiny_critic):
    pixels = torch.rand(2, 9, 8, 3)
    expected = tiny_critic(pixels.numpy(), "a cat").scores
    for tensor in (pixels, pixels.clone().requires_grad_(), list(pixels)):
        np.testing.assert_array_equal(tiny_critic(tensor, "a cat").scores, expected)
    np.testing.assert_allclose(tiny_critic(pixels.bfloat16(), "a cat").scores, expected, atol=0.02)
    with pytest.raises(ImageError, match="channels first"):
        tiny_critic(pixels.movedim(-1, 1), "a cat")
    with pytest.raises(TypeError, match="a PyTorch tensor, whose gradients JAX cannot follow; use rahf.interop.torch"):
        tiny_critic.scores(pixels, tiny_critic.tokens("a cat"))
