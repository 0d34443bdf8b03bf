"""Pictures and terminal text of feedback: heatmap overlays, panels, marked words, score bars.

Only NumPy, Pillow and rich. Heatmaps are warm (implausibility) or cool (misalignment); both grow more opaque
with the value, so that the picture stays visible where nothing is wrong.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from rahf.core.batch import HEATMAPS, SCORES
from rahf.core.names import printable
from rahf.images.overlay import font, overlay, panel
from rahf.text.words import pieces

if TYPE_CHECKING:  # whoever only reads an exported model does without
    from jaxtyping import Float, Real, UInt8
    from rich.table import Table
    from rich.text import Text


def feedback_panel(
    image: UInt8[np.ndarray, "H W 3"],
    heatmaps: Real[np.ndarray, "h w 2"],
    scores: Float[np.ndarray, "4"] | None = None,
    true_heatmaps: Real[np.ndarray, "h2 w2 2"] | None = None,
    height: int = 384,
) -> Image.Image:
    """A picture, its two heatmaps laid over it, and the four scores as bars underneath.

    Args:
      image: uint8 RGB.
      heatmaps: predicted, float in [0,1], order HEATMAPS; a map with NaN is not drawn.
      scores: predicted, in [0,1], order SCORES; None: no bars.
      true_heatmaps: uint8 0..255 or float in [0,1]; None: no second row.
      height: of each picture, in pixels.
    """
    # Outlines are drawn at the picture's resolution: enlarge it first for fine ones.
    if image.shape[0] < height and image.shape[1] <= 3 * image.shape[0]:
        width = max(1, round(image.shape[1] * height / image.shape[0]))
        image = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))
    pictures = [("picture", image)]
    for kind, name in enumerate(HEATMAPS):
        if not np.isnan(heatmaps[:, :, kind]).any():
            pictures.append((name, overlay(image, heatmaps[:, :, kind], name, contour=0.5)))
    if true_heatmaps is not None:
        pictures.append(("picture", image))
        for kind, name in enumerate(HEATMAPS):
            pictures.append((f"true {name}", overlay(image, true_heatmaps[:, :, kind], name, contour=0.5)))
    top = panel(pictures, height, columns=3)
    if scores is None:
        return top
    bars = _score_picture(scores, top.width, max(12, height // 20))
    canvas = Image.new("RGB", (top.width, top.height + bars.height), "white")
    canvas.paste(top, (0, 0))
    canvas.paste(bars, (0, top.height))
    return canvas


def _score_picture(scores: Float[np.ndarray, "4"], width: int, size: int) -> Image.Image:
    typeface, gap, line = font(size), size // 2, int(size * 1.8)
    canvas = Image.new("RGB", (width, line * len(SCORES) + gap), "white")
    draw = ImageDraw.Draw(canvas)
    left = gap + int(max(draw.textlength(name, typeface) for name in SCORES)) + gap
    right = width - gap - int(draw.textlength("0.00", typeface)) - gap
    for row, (name, score) in enumerate(zip(SCORES, scores)):
        middle, half = row * line + line // 2, max(2, size // 4)
        draw.text((gap, middle), name, fill=(40, 40, 48), font=typeface, anchor="lm")
        draw.rounded_rectangle((left, middle - half, right, middle + half), half, fill=(228, 230, 236))
        end = left + (right - left) * float(np.clip(np.nan_to_num(score), 0, 1))
        if end - left >= 2 * half:
            draw.rounded_rectangle((left, middle - half, end, middle + half), half, fill=(72, 92, 200))
        draw.text((right + gap, middle), _shown(score), fill=(40, 40, 48), font=typeface, anchor="lm")
    return canvas


def _shown(score: float) -> str:
    """Two digits; for a score that a model does not predict a hyphen, because Pillow's font has no en dash."""
    return "-" if np.isnan(score) else f"{score:.2f}"


def prompt_text(prompt: str, words: Sequence[str], labels: Sequence[int]) -> Text:
    """A prompt for the terminal, misaligned words bold, red, underlined and with a cross (visible without colour).

    Args:
      prompt: as written.
      words: its words by the dataset's rule.
      labels: 1 aligned, 0 misaligned, one per word; missing ones count as aligned.
    """
    from rich.text import Text

    text = Text()
    for piece in pieces(prompt, words):
        shown = printable(piece.text)
        if piece.word is not None and piece.word < len(labels) and labels[piece.word] == 0:
            text.append(shown + "✗", style="bold underline red")
        else:
            text.append(shown)
    return text


def prompt_html(prompt: str, words: Sequence[str], classes: Sequence[str], titles: Sequence[str] | None = None) -> str:
    """A prompt as HTML, everything escaped; words with a class become ``<mark class="...">``.

    Args:
      prompt: as written.
      words: its words by the dataset's rule.
      classes: a CSS class per word, "" for none.
      titles: a tooltip per marked word.
    """
    out = []
    for piece in pieces(prompt, words):
        text = html.escape(piece.text)
        if piece.word is None or piece.word >= len(classes) or not classes[piece.word]:
            out.append(text)
            continue
        title = f' title="{html.escape(titles[piece.word])}"' if titles and titles[piece.word] else ""
        out.append(f'<mark class="{html.escape(classes[piece.word])}"{title}>{text}</mark>')
    return "".join(out)


def score_bars(scores: Sequence[float], truth: Sequence[float] | None = None, width: int = 24) -> Table:
    """The four scores as bars for the terminal.

    Args:
      scores: [4] in [0,1], order SCORES.
      truth: [4] or None; NaN where not rated. Shown as a number behind the bar.
      width: of a full bar, in characters.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 1))
    for number, name in enumerate(SCORES):
        score = float(np.clip(np.nan_to_num(scores[number]), 0, 1))
        full = round(score * width)
        bar = Text("━" * full, style="blue") + Text("─" * (width - full), style="bright_black")
        row: list[str | Text] = [name, bar, _shown(scores[number])]
        if truth is not None:
            row.append("" if np.isnan(truth[number]) else f"(rated {truth[number]:.2f})")
        table.add_row(*row)
    return table
