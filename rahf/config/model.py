"""What the configs of all model families have in common.

`Config.model` is an open union: any subclass of `FamilyConfig`, told apart by its field `family`. A family of
another package joins by defining its subclass; `rahf.registry` then says which `Task` trains it.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal


@dataclasses.dataclass(frozen=True)
class FamilyConfig:
    """Base of the config of a model family. A subclass has a field `family` whose default is the family's name."""

    family: str = ""

    #: The config class of each family that has been imported, by name.
    classes: ClassVar[dict[str, type[FamilyConfig]]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if name := cls.__dict__.get("family", ""):
            FamilyConfig.classes[name] = cls


@dataclasses.dataclass(frozen=True)
class ImageModelConfig(FamilyConfig):
    """Fields of every network that sees pixels."""

    image_size: int = 512  # side of the square that the network sees
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    compute_dtype: Literal["float32", "bfloat16"] = "float32"  # parameters are always float32
    # How it is computed, which changes neither results nor parameters:
    attention: Literal["auto", "xla", "cudnn"] = "auto"  # auto: cuDNN's fused attention on NVIDIA GPUs in bfloat16
    remat: Literal["none", "dots", "block", "full"] = "none"  # kept for the gradient: all; products; blocks; parts
    scan_layers: bool = False  # one compiled layer used for all of a stack: compiles faster, runs a little slower
