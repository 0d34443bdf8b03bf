"""Captions by a model of the Hugging Face hub, for pictures that nobody described. Needs PyTorch (`rahf[torch]`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from rahf.core.errors import ArgumentError, PretrainedError

_TASK = "image-text-to-text"
#: What a chat model is asked. Models without a chat template caption without a question.
QUESTION = "Describe the picture in one short sentence."
_NEW_TOKENS = 20  # spec 8.1


class Captioner(NamedTuple):
    """Pictures → captions.

    Attributes:
      name: of the model, for the data sheet and to tell other inputs.
      describe: uint8 [h,w,3] pictures → one text each; "" where the model says nothing.
    """

    name: str
    describe: Callable[[Sequence[np.ndarray]], list[str]]


def from_hub(model: str, revision: str | None = None, question: str = QUESTION, device: str | None = None) -> Captioner:
    """A captioner through `transformers`: a captioning model such as BLIP, or a vision-language model that chats.

    Weights are read from safetensors, and no code of the repository is run.

    Args:
      model: hub id or folder.
      revision: branch, tag or commit; None: the main branch.
      question: to a model that chats.
      device: as of `transformers.pipeline`; None: its choice.

    Raises:
      ArgumentError: PyTorch is not installed.
      PretrainedError: the model cannot be loaded.
    """
    try:
        # Imported here: optional, and takes seconds.
        import torch  # noqa: F401 - without it the pipeline's own message names nothing to do
        import transformers
    except ImportError as error:
        raise ArgumentError(f"--captioner {model}: needs PyTorch: pip install rahf[torch]") from error
    try:
        pipe = transformers.pipeline(
            _TASK, model=model, revision=revision, device=device, model_kwargs={"use_safetensors": True}
        )
    except Exception as error:  # errors of the hub, of its network library, and of models of other tasks
        raise PretrainedError(
            f"--captioner {model}: cannot be loaded as a model of {_TASK} with safetensors weights: {error}"
        ) from error
    return Captioner(
        model if revision is None else f"{model}@{revision}", lambda pictures: described(pipe, pictures, question)
    )


def described(pipe: Any, pictures: Sequence[np.ndarray], question: str = QUESTION) -> list[str]:
    """Captions by a pipeline of `transformers`, on one line each.

    Raises:
      PretrainedError: it does not return one text per picture.
    """
    opened = [Image.fromarray(picture) for picture in pictures]
    generate = {"generate_kwargs": {"do_sample": False, "max_new_tokens": _NEW_TOKENS}, "return_full_text": False}
    if getattr(pipe.processor, "chat_template", None):
        results = [pipe(text=_chat(one, question), **generate) for one in opened]
    else:
        results = [pipe(images=one, text="", **generate) for one in opened]
    return [_text(result) for result in results]


def _chat(picture: Image.Image, question: str) -> list[dict[str, Any]]:
    content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
    return [{"role": "user", "content": content}]


def _text(result: Any) -> str:
    """The text of one picture: a list of one dict, or for some versions the dict itself."""
    one = result[0] if isinstance(result, list) and len(result) == 1 else result
    text = one.get("generated_text") if isinstance(one, dict) else None
    if not isinstance(text, str):
        raise PretrainedError(f"the captioner returned {result!r:.200}, expected one generated_text per picture")
    return " ".join(text.split())
