"""Pictures and terminal text of feedback: heatmap overlays, panels, marked words, score bars.

Only NumPy, Pillow and rich. Heatmaps are warm (implausibility) or cool (misalignment); both grow more opaque
with the value, so that the picture stays visible where nothing is wrong.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rahf.batch import HEATMAPS, SCORES
from rahf.metrics.heatmaps import resize

if TYPE_CHECKING:  # whoever only reads an exported model does without
    from jaxtyping import Float, Real, UInt8
    from rich.table import Table
    from rich.text import Text

#: Colours (red, green, blue) at equal steps from 0 to 1; darkness grows steadily, so print and colour-blind
#: eyes keep the order.
PALETTES = {
    "implausibility": ((255, 240, 150), (255, 200, 60), (250, 130, 30), (225, 50, 35), (140, 0, 50)),
    "misalignment": ((175, 245, 250), (80, 205, 245), (50, 130, 245), (105, 55, 230), (130, 0, 150)),
}
_FULL = 0.6  # a value from which an overlay is as opaque as it gets; two of three annotators are 0.67
_NOTHING = 0.02  # values up to it stay invisible: about the level of an untrained output


def colours(heatmap: Real[np.ndarray, "h w"], palette: str) -> UInt8[np.ndarray, "h w 3"]:
    """Colours of a heatmap, without any transparency.

    Args:
      heatmap: uint8 0..255 or float in [0,1]; values outside are clipped, NaN counts as 0.
      palette: a name in `PALETTES`.
    """
    table = np.asarray(PALETTES[palette], np.float64)
    value = as_unit(heatmap)
    steps = np.linspace(0, 1, len(table))
    channels = [np.interp(value, steps, table[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def heatmap_rgba(heatmap: Real[np.ndarray, "h w"], palette: str, strength: float = 0.85) -> UInt8[np.ndarray, "h w 4"]:
    """A heatmap as a layer to lay over its picture: colour by value, opacity growing with the value.

    Args:
      heatmap: uint8 0..255 or float in [0,1].
      palette: a name in `PALETTES`.
      strength: opacity of the highest values, in [0,1].
    """
    value = as_unit(heatmap)
    alpha = np.clip((value - _NOTHING) / (_FULL - _NOTHING), 0, 1) ** 0.8 * strength
    return np.dstack([colours(value, palette), (alpha * 255).round().astype(np.uint8)])


def overlay(
    image: UInt8[np.ndarray, "H W 3"],
    heatmap: Real[np.ndarray, "h w"],
    palette: str = "implausibility",
    strength: float = 0.85,
    contour: float | None = None,
) -> UInt8[np.ndarray, "H W 3"]:
    """A picture with a heatmap laid over it.

    Args:
      image: uint8 RGB.
      heatmap: uint8 0..255 or float in [0,1], any size; resized bilinearly to the picture.
      palette: a name in `PALETTES`.
      strength: opacity of the highest values, in [0,1]; 0 leaves the picture as it is.
      contour: also draw a line around everything at least so high, in (0,1].

    Returns:
      uint8 [H,W,3].
    """
    value = as_unit(heatmap)
    if value.shape != image.shape[:2]:
        value = np.clip(resize(value, image.shape[:2]), 0, 1)
    layer = heatmap_rgba(value, palette, strength).astype(np.float32)
    alpha = layer[:, :, 3:] / 255
    mixed = image * (1 - alpha) + layer[:, :, :3] * alpha
    if contour is not None:
        mixed[_outline(value >= contour)] = PALETTES[palette][-1]
    return mixed.round().astype(np.uint8)


def as_unit(heatmap: Real[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """uint8 0..255 or float → float32 in [0,1], NaN as 0."""
    heatmap = np.asarray(heatmap)
    if heatmap.dtype == np.uint8:
        return heatmap.astype(np.float32) / 255
    return np.clip(np.nan_to_num(heatmap.astype(np.float32)), 0, 1)


def _outline(inside: np.ndarray) -> np.ndarray:
    """Pixels of a region that touch its outside, in a line that is visible at the picture's size."""
    thickness = max(1, round(max(inside.shape) / 256))
    core = inside
    for _ in range(thickness):
        padded = np.pad(core, 1, constant_values=True)
        core = core & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return inside & ~core


def panel(pictures: Sequence[tuple[str, np.ndarray]], height: int = 384, columns: int | None = None) -> Image.Image:
    """Pictures side by side on white, a caption over each.

    Args:
      pictures: (caption, uint8 RGB [H,W,3] of any size); scaled to the same height.
      height: of every picture, in pixels.
      columns: pictures per row; None: all in one row.
    """
    columns = columns or max(len(pictures), 1)
    gap, size = max(6, height // 32), max(11, height // 20)
    font, line = _font(size), int(size * 1.7)
    scaled = []
    for _, picture in pictures:
        width = max(1, round(picture.shape[1] * height / picture.shape[0]))
        scaled.append(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))
    rows = [range(start, min(start + columns, len(scaled))) for start in range(0, len(scaled), columns)]
    total = max((sum(scaled[i].width + gap for i in row) for row in rows), default=0) + gap
    canvas = Image.new("RGB", (total, len(rows) * (height + line + gap) + gap), "white")
    draw = ImageDraw.Draw(canvas)
    for number, row in enumerate(rows):
        x, y = gap, gap + number * (height + line + gap)
        for i in row:
            draw.text((x, y), pictures[i][0], fill=(40, 40, 48), font=font)
            canvas.paste(scaled[i], (x, y + line))
            x += scaled[i].width + gap
    return canvas


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
      heatmaps: predicted, float in [0,1], order HEATMAPS; one with NaN is left out.
      scores: predicted, in [0,1], order SCORES; None: no bars.
      true_heatmaps: uint8 0..255 or float in [0,1]; None: no second row.
      height: of each picture, in pixels.
    """
    if image.shape[0] < height:  # outlines are drawn on the picture: let them be fine
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
    font, gap, line = _font(size), size // 2, int(size * 1.8)
    canvas = Image.new("RGB", (width, line * len(SCORES) + gap), "white")
    draw = ImageDraw.Draw(canvas)
    left = gap + int(max(draw.textlength(name, font) for name in SCORES)) + gap
    right = width - gap - int(draw.textlength("0.00", font)) - gap
    for row, (name, score) in enumerate(zip(SCORES, scores)):
        middle, half = row * line + line // 2, max(2, size // 4)
        draw.text((gap, middle), name, fill=(40, 40, 48), font=font, anchor="lm")
        draw.rounded_rectangle((left, middle - half, right, middle + half), half, fill=(228, 230, 236))
        end = left + (right - left) * float(np.clip(np.nan_to_num(score), 0, 1))
        if end - left >= 2 * half:
            draw.rounded_rectangle((left, middle - half, end, middle + half), half, fill=(72, 92, 200))
        draw.text((right + gap, middle), _shown(score), fill=(40, 40, 48), font=font, anchor="lm")
    return canvas


def _shown(score: float) -> str:
    """Two digits; a dash, plain because Pillow's font lacks others, for a score that a model does not predict."""
    return "-" if np.isnan(score) else f"{score:.2f}"


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


class Piece(NamedTuple):
    """A stretch of a prompt: a word with its number, or what stands between words (number None)."""

    text: str
    word: int | None


def pieces(prompt: str, words: Sequence[str]) -> Iterator[Piece]:
    """Cuts a prompt into its words and what stands between them, so that joining gives the prompt again.

    Words that the prompt does not contain in this order (labels of another prompt) are appended after it.
    """
    position = 0
    for number, word in enumerate(words):
        start = prompt.find(word, position)
        if start < 0:
            if prompt[position:]:
                yield Piece(prompt[position:], None)
            for rest in range(number, len(words)):
                yield Piece(" ", None)
                yield Piece(words[rest], rest)
            return
        if start > position:
            yield Piece(prompt[position:start], None)
        yield Piece(word, number)
        position = start + len(word)
    if prompt[position:]:
        yield Piece(prompt[position:], None)


def prompt_text(prompt: str, words: Sequence[str], labels: Sequence[int]) -> Text:
    """A prompt for the terminal, misaligned words bold, red, underlined and with a cross (for pipes).

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


def printable(text: str) -> str:
    """Text without control characters, which could move the cursor or recolour the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def prompt_html(prompt: str, words: Sequence[str], classes: Sequence[str], titles: Sequence[str] | None = None) -> str:
    """A prompt as HTML, everything escaped; words with a class become ``<mark class="...">``.

    Args:
      prompt: as written.
      words: its words by the dataset's rule.
      classes: a CSS class per word, "" for none; our own, not from outside.
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
