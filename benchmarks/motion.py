"""Measures rendering of motion: its speed, and how near its frames are to the true ones. Prints two JSON lines.

    python benchmarks/motion.py [--scenes 64] [--frames 3] [--seeds 0 1] [--width 256] [--height 160] [--renderer RUN]
    python benchmarks/motion.py --picture docs/images/motion.webp
    python benchmarks/motion.py --picture docs/images/motion-model.webp --model runs/motion_frequency

Speed: a spectral volume to 150 frames, compilation apart. Quality: drawn scenes with exact volumes, at evenly
spread times of their motion; PSNR in dB and SSIM (a Gaussian window of 1.5 pixels, on luma) against the true frames, of
softmax splatting, average splatting, bilinear backward warping, a trained renderer if one is given, and the still
photograph. Means over scenes with 95% bootstrap intervals. The same after the volume has been cut to fewer frequencies.
With --picture it draws four scenes that loop, and measures nothing; with a model three scenes, above with their true
motion, below with the one that the model draws for the photograph alone.
"""

from __future__ import annotations

import argparse
import json
import os
import time

import numpy as np

from data_pipelines.video import scenes
from rahf.metrics.pictures import psnr, ssim
from rahf.motion import model, renderer_task, video_file
from rahf.motion.render import Renderer, frame_times

_METHODS = ("softmax", "average", "backward")
_TERMS = (4, 8)


def main() -> None:
    """Parses, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scenes", type=int, default=64, help="per seed")
    parser.add_argument("--frames", type=int, default=3, help="per scene")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--height", type=int, default=160)
    parser.add_argument("--renderer", default=None, metavar="RUN", help="a trained renderer, measured beside")
    parser.add_argument("--picture", default=None, metavar="FILE.webp", help="draw four looping scenes instead")
    parser.add_argument("--model", default=None, metavar="RUN", help="with --picture: a trained motion model")
    args = parser.parse_args()
    if args.picture is not None:
        return draw(args.picture) if args.model is None else draw_model(args.picture, args.model)
    print(json.dumps(speed(args.width, args.height)), flush=True)
    print(json.dumps(quality(args)))


def draw(path: str) -> None:
    """Four drawn scenes that loop, 384 x 240 pixels at 20 frames/s."""
    chosen = [scenes.scene(seed, "test", index, 192, 120) for seed, index in ((3, 0), (3, 1), (3, 2), (5, 4))]
    drawings = [Renderer(scene.frame(0), scene.volume()) for scene in chosen]
    with video_file.writer(path, 20.0) as video:
        for time in frame_times(chosen[0].volume(), 5.0, 20.0, loop=True):
            frames = [drawing.frame(float(time)) for drawing in drawings]
            video.add(np.concatenate([np.concatenate(frames[:2], 1), np.concatenate(frames[2:], 1)]))


def draw_model(path: str, run: str) -> None:
    """Three drawn scenes, 576 x 240 pixels at 15 frames/s: true motion above, drawn motion below."""
    chosen, generator = [scenes.scene(3, "test", index, 192, 120) for index in (0, 2, 4)], model.load(run)
    true = [Renderer(scene.frame(0), scene.volume()) for scene in chosen]
    drawn = [Renderer(scene.frame(0), generator.volume(scene.frame(0), num_inference_steps=20)) for scene in chosen]
    with video_file.writer(path, 15.0) as video:
        for time in frame_times(chosen[0].volume(), 5.0, 15.0, loop=True):
            rows = [np.concatenate([one.frame(float(time)) for one in row], 1) for row in (true, drawn)]
            video.add(np.concatenate(rows))


def speed(width: int, height: int) -> dict[str, float]:
    """Seconds for all frames of a volume, and for the first, which compiles."""
    scene = scenes.scene(0, "test", 0, width, height)
    picture, volume = scene.frame(0), scene.volume()
    start = time.perf_counter()
    renderer = Renderer(picture, volume)
    renderer.frame(0.0)
    compiled = time.perf_counter()
    for number in range(volume.frames):
        renderer.frame(float(number))
    seconds = time.perf_counter() - compiled
    rate = volume.frames / seconds
    numbers = {"first_frame_seconds": compiled - start, "seconds": seconds, "frames_per_second": rate}
    return {"frames": volume.frames, "cores": os.cpu_count(), **{name: round(x, 2) for name, x in numbers.items()}}


def quality(args: argparse.Namespace) -> dict[str, object]:
    """Means over scenes, and intervals, by method and metric."""
    values: dict[str, list[tuple[float, float]]] = {}
    trained = {} if args.renderer is None else {"trained renderer": renderer_task.load(args.renderer)}
    for seed in args.seeds:
        for index in range(args.scenes):
            scene = scenes.scene(seed, "test", index, args.width, args.height)
            picture, volume = scene.frame(0), scene.volume()
            renderers = {method: Renderer(picture, volume, method=method) for method in _METHODS}
            renderers |= {name: Renderer(picture, volume, network=network) for name, network in trained.items()}
            for terms in _TERMS:
                renderers[f"softmax, {terms} terms"] = Renderer(
                    picture, volume._replace(spectrum=volume.spectrum[:terms])
                )
            times = [round((n + 0.5) * volume.frames / args.frames) for n in range(args.frames)]
            truth = {t: scene.frame(t) for t in times}
            frames = {name: [renderer.frame(float(t)) for t in times] for name, renderer in renderers.items()}
            frames["still"] = [picture] * len(times)
            for name, drawn in frames.items():
                scored = [(psnr(one, truth[t]), ssim(one, truth[t])) for one, t in zip(drawn, times)]
                values.setdefault(name, []).append(tuple(np.mean(scored, 0)))
    return {"scenes": args.scenes * len(args.seeds), **{name: summary(np.array(rows)) for name, rows in values.items()}}


def summary(rows: np.ndarray) -> dict[str, list[float]]:
    """Mean, and the 95% interval of the mean over scenes, of each column."""
    drawn = np.random.default_rng(0).integers(0, len(rows), (2000, len(rows)))
    low, high = np.percentile(rows[drawn].mean(1), [2.5, 97.5], axis=0)
    columns = zip(("psnr", "ssim"), rows.mean(0), low, high)
    return {name: [round(float(x), 4) for x in numbers] for name, *numbers in columns}


if __name__ == "__main__":
    main()
