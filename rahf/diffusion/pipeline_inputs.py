"""What a pipeline is called with, checked and brought to one shape: prompts, seeds, sizes, pictures, masks, noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rahf.config import StableDiffusionConfig
from rahf.core import pixel_range
from rahf.core.errors import ArgumentError
from rahf.diffusion import controlnet as controlnet_lib
from rahf.text import ClipTokenizer, Encoded
from rahf.text import prompts as prompts_lib
from rahf.text.prompts import EncodedPrompt


class Task(NamedTuple):
    """What one batch is to become; NumPy arrays with one row per picture.

    Attributes:
      ids, negative_ids: tokens of each text tower; None: zeros take the negative prompt's place (XL).
      noise: float32 [B,h,w,c], of unit variance.
      seeds: uint32 [B], of the noise that steps draw.
      image: float32 [B,H,W,3] in [0,1] to start from or to repaint; None: start from noise.
      mask: float32 [B,H,W], 1: repaint; None: all of it.
      hint: float32 [B,H,W,c] in [0,1], what a ControlNet reads; None: it takes no part.
    """

    ids: tuple[np.ndarray, ...]
    negative_ids: tuple[np.ndarray, ...] | None
    noise: np.ndarray
    seeds: np.ndarray
    image: np.ndarray | None
    mask: np.ndarray | None
    hint: np.ndarray | None = None

    def rows(self, start: int, size: int) -> Task:
        """A batch of `size` pictures; the last one is repeated where there are not as many."""
        take = lambda x: x[np.minimum(np.arange(start, start + size), len(x) - 1)]  # noqa: E731
        return jax.tree.map(take, self)


def tokens(
    prompts: Sequence[str], tokenizers: Sequence[ClipTokenizer], length: int, pad_token_ids: Sequence[int]
) -> tuple[np.ndarray, ...]:
    """Prompts → int32 [B,L] for each text tower, which has its own tokenizer and padding. Prompts may be empty.

    Warns:
      rahf.text.PromptWarning: a prompt is too long; names the words that are cut off.
    """
    arrays = []
    for number, (tokenizer, pad) in enumerate(zip(tokenizers, pad_token_ids)):
        encoded = [tokenizer.encode_prompt(prompt, length) for prompt in prompts]
        if number == 0:
            prompts_lib.warn([_noted(prompt, one, length) for prompt, one in zip(prompts, encoded)])
        ids, mask = np.stack([one.ids for one in encoded]), np.stack([one.mask for one in encoded])
        arrays.append(np.where(mask, ids, pad).astype(np.int32))
    return tuple(arrays)


def _noted(prompt: str, one: Encoded, length: int) -> EncodedPrompt:
    lost = f"the model reads {length} tokens; not read: {prompts_lib.some(one.words_lost)}"
    return EncodedPrompt(prompt, [], one.ids, one.mask, one.ids, one.ids, [lost] if one.words_lost else [])


def texts(name: str, value: Any) -> list[str]:
    """One text or several, each of which may be empty.

    Raises:
      ArgumentError: none, something else, or text that is not valid Unicode.
    """
    listed = [value] if isinstance(value, str) else list(value) if isinstance(value, Sequence) else None
    if not listed or not all(isinstance(text, str) for text in listed):
        raise ArgumentError(f"{name}: expected a text or a list of texts, found {value!r}")
    for number, text in enumerate(listed):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ArgumentError(f"{name} {number} is not valid Unicode ({error.reason}): {text[:60]!r}") from error
    return listed


def per_picture(parts: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    """Repeats what there is one of; each part is an array or a list, or None.

    Returns:
      The number of pictures, and the parts, all of this length.

    Raises:
      ArgumentError: numbers that do not fit; names them.
    """
    rows = {name: len(value) for name, value in parts.items() if value is not None}
    count = max(rows.values())
    if not set(rows.values()) <= {1, count}:
        numbers = " but ".join(f"{number} {name}" for name, number in rows.items())
        raise ArgumentError(f"{numbers}: give one, or one per picture")
    return count, {name: _repeated(value, count) for name, value in parts.items()}


def _repeated(value: Any, count: int) -> Any:
    if value is None or len(value) == count:
        return value
    return value * count if isinstance(value, list) else np.repeat(value, count, 0)


def size(
    height: int | None, width: int | None, image: np.ndarray | None, default: int, multiple: int
) -> tuple[int, int]:
    """Height and width of the pictures: as asked for, else the image's, else the model's.

    Raises:
      ArgumentError: a side that is no multiple of a cell of the latents, or other than the image's.
    """
    of_image = (None, None) if image is None else image.shape[1:3]
    sides = []
    for name, asked, there in (("height", height, of_image[0]), ("width", width, of_image[1])):
        side = asked if asked is not None else there if there is not None else default
        if isinstance(side, bool) or not isinstance(side, (int, np.integer)) or side < multiple or side % multiple:
            nearest = max(multiple, round(float(side) / multiple) * multiple) if np.isscalar(side) else multiple
            raise ArgumentError(
                f"{name}: expected a multiple of {multiple} pixels, one cell of the latents, found {side!r}; "
                f"the nearest is {nearest}"
            )
        if there is not None and side != there:
            raise ArgumentError(f"{name}: expected {there}, the image's, found {side}; resize the image first")
        sides.append(int(side))
    return sides[0], sides[1]


def pictures(name: str, value: Any) -> np.ndarray:
    """Pictures as float32 [B,H,W,3] in [0,1]; one, [H,W,3], or uint8 are taken, too.

    Raises:
      ArgumentError: another shape. ImageError: values outside of [0,1].
    """
    array = np.asarray(value)
    array = array[None] if array.ndim == 3 else array
    if array.ndim != 4 or array.shape[-1] != 3 or not (array.dtype == np.uint8 or array.dtype.kind == "f"):
        raise ArgumentError(
            f"{name}: expected pictures float32 [B,H,W,3] in [0,1], or uint8, found {array.dtype} {array.shape}"
        )
    array = array.astype(np.float32) / (255.0 if array.dtype == np.uint8 else 1.0)
    pixel_range.check(name, float(array.min(initial=0)), float(array.max(initial=0)))
    return np.clip(array, 0, 1)


def masks(value: Any, image: np.ndarray | None) -> np.ndarray:
    """Masks as float32 [B,H,W], 0 or 1, 1 = repaint; one, [H,W], booleans and uint8 are taken, too.

    Raises:
      ArgumentError: there is no image, or masks have another size. ImageError: values outside of [0,1].
    """
    array = np.asarray(value)
    array = array[None] if array.ndim == 2 else array
    if image is None:
        raise ArgumentError("mask_image: expected image, too: the picture that is to be repainted")
    if array.shape[1:] != image.shape[1:3]:
        raise ArgumentError(
            f"mask_image: expected [B,{image.shape[1]},{image.shape[2]}], the size of image, found {array.shape}"
        )
    array = array.astype(np.float32) / (255.0 if array.dtype == np.uint8 else 1.0)
    pixel_range.check("mask_image", float(array.min(initial=0)), float(array.max(initial=0)))
    return (array >= 0.5).astype(np.float32)


def latent_mask(mask: np.ndarray, factor: int) -> np.ndarray:
    """A mask float32 [B,H,W] on the grid of latents, [B,h,w,1]: a cell is repainted if any of its pixels is."""
    b, h, w = mask.shape
    return mask.reshape(b, h // factor, factor, w // factor, factor).max((2, 4))[..., None]


def noise(value: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Given noise, float32 [B,h,w,c].

    Raises:
      ArgumentError: another shape, or values that are not finite.
    """
    array = np.asarray(value, np.float32)
    array = array[None] if array.ndim == 3 else array
    if array.shape[1:] != shape:
        raise ArgumentError(
            f"latents: expected noise float32 [B,{','.join(map(str, shape))}] of unit variance, found {array.shape}"
        )
    if not np.isfinite(array).all():
        bad = int(np.flatnonzero(~np.isfinite(array).all((1, 2, 3)))[0])
        raise ArgumentError(f"latents: those of picture {bad} are not finite (NaN or infinite) before the first step")
    return array


def hints(value: Any, controlnet: controlnet_lib.ControlNet | None, size: tuple[int, int]) -> np.ndarray | None:
    """What a ControlNet reads, float32 [B,H,W,c] in [0,1] of the pictures' size; None stays None.

    Raises:
      ArgumentError: there is no ControlNet, or pictures of another form.
    """
    if value is None:
        return None
    if controlnet is None:
        raise ArgumentError("control_image: this pipeline has no ControlNet; set pipe.controlnet first")
    return controlnet_lib.hints(value, controlnet.config, size)


def control(
    task: Task, controlnet: controlnet_lib.ControlNet | None, model: StableDiffusionConfig
) -> controlnet_lib.Control | None:
    """The ControlNet with what it reads, at scale 1; None where it takes no part."""
    if task.hint is None:
        return None
    network = controlnet_lib.network(controlnet.config, model)
    return controlnet_lib.Control(controlnet.params, jnp.asarray(task.hint), np.float32(1), network)
