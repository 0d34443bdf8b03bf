"""Measures what the device can do at most, and what its convolutions reach. Prints one JSON line.

    python benchmarks/gpu_limits.py
    python benchmarks/gpu_limits.py --device          # only: devices, versions, whether fused attention works

Products of large square matrices of random values in bfloat16 and float32, a copy of a large array (bytes read and
bytes written count), and the heaviest convolution of the heatmap heads: 3x3, 192 channels, 384 x 384 pixels.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import jax
import jax.extend.backend
import jax.numpy as jnp
import measuring

from rahf.cli import machine_checks


def convolution(side: int, channels: int, batch: int) -> float:
    """TFLOP/s of a 3x3 convolution in bfloat16, channels last."""
    image = jax.random.normal(jax.random.key(0), (batch, side, side, channels), jnp.bfloat16)
    kernel = jax.random.normal(jax.random.key(1), (3, 3, channels, channels), jnp.bfloat16)
    dimensions = ("NHWC", "HWIO", "NHWC")
    function = jax.jit(lambda x, k: jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=dimensions))
    seconds = min(measuring.per_call(lambda: function(image, kernel), 0.5, 3))
    return 2 * 9 * batch * side**2 * channels**2 / seconds / 1e12


def described() -> dict[str, Any]:
    """Devices, versions and fused attention, as `rahf doctor` sees them."""
    checks = [*machine_checks.versions(), *machine_checks.devices(), *machine_checks.fused_attention()]
    checks += machine_checks.optional()
    broken = [f"{check.name}: {check.found}" for check in checks if check.verdict == "broken"]
    return {
        "benchmark": "device",
        "device": jax.local_devices()[0].device_kind,
        "platform": jax.default_backend(),
        "platform_version": jax.extend.backend.get_backend().platform_version,
        "checks": {check.name: check.found for check in checks},
        "broken": broken,
    }


def main() -> None:
    """Measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="small arrays, as on a CPU: to try the program")
    parser.add_argument("--device", action="store_true", help="only what this machine is")
    args = parser.parse_args()
    small = args.small or jax.default_backend() == "cpu"
    device = jax.local_devices()[0]
    if args.device:
        print(json.dumps(described()))
        return
    result = {"benchmark": "limits", "device": device.device_kind, "jax": jax.__version__}
    side = 512 if small else 8192
    for dtype in ("bfloat16", "float32"):
        result[f"{dtype}_tflop_per_second"] = round(measuring.matmul_peak(dtype, side), 4)
    result["copy_gb_per_second"] = round(measuring.copy_bandwidth(2**-4 if small else 2.0), 1)
    result["convolution_tflop_per_second"] = round(convolution(*((32, 32, 1) if small else (384, 192, 8))), 4)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
