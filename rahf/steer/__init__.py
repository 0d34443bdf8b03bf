"""Uses of feedback on pictures that exist: masks of what to repaint, repair, and selection of the best.

Functions, with `critic` of `rahf.load` and `generator` of `rahf.diffusion.load`:

    mask = rahf.steer.from_heatmap(prediction.heatmaps[0, :, :, 0], size=(height, width))
    result = rahf.steer.repair(rahf.steer.painter(generator), "picture.png", prompt, critic=critic)
    selection = rahf.steer.select(prediction, "plausibility", groups=prompts)
"""

from rahf.core.lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "Mask": "rahf.steer.masks",
        "MaskOptions": "rahf.steer.masks",
        "MaskWarning": "rahf.steer.masks",
        "Repair": "rahf.steer.repaint",
        "Selection": "rahf.steer.best_of_n",
        "SelectionOptions": "rahf.steer.best_of_n_files",
        "from_heatmap": "rahf.steer.masks",
        "painter": "rahf.steer.inpainting",
        "repair": "rahf.steer.repaint",
        "select": "rahf.steer.best_of_n",
        "select_files": "rahf.steer.best_of_n_files",
    },
)
