"""Image files and arrays of any kind → the arrays that networks take. Importable without JAX: data workers decode."""

from rahf.core.errors import ImageError
from rahf.images.decode import (
    FULL,
    MAX_PIXELS,
    Box,
    Header,
    OnDamage,
    check_header,
    decode_resized,
    is_upright_rgb,
    load_rgb,
)
from rahf.images.maps import decode_map, load_grey, load_map, resize_grey

__all__ = [
    "FULL",
    "MAX_PIXELS",
    "Box",
    "Header",
    "ImageError",
    "OnDamage",
    "check_header",
    "decode_map",
    "decode_resized",
    "is_upright_rgb",
    "load_grey",
    "load_map",
    "load_rgb",
    "resize_grey",
]
