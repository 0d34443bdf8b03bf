"""Small video files of pictures, written by PyAV."""

from fractions import Fraction

import numpy as np


def write_video(path, frames, fps=30, times=None, ticks=None):
    """Frames uint8 [T,h,w,3] → a file; `times`: of each frame in frames of `fps`, or in `ticks` a second."""
    import av

    ticks = ticks or fps
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "4"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv444p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, ticks)
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = number if times is None else int(times[number]), Fraction(1, ticks)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
