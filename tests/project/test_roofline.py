"""A compiled program's bytes and operations by part, and the training step as a program for an NVIDIA GPU."""

import dataclasses
import json
import re
import sys

import jax
import jax.numpy as jnp
import pytest

from rahf.config import Config, DataConfig
from rahf.nn.flops import count_flops
from tests.helpers.benchmark_programs import ROOT
from tests.helpers.model_maker import OTHER

DATA = DataConfig(batch_size=3, max_prompt_tokens=9, max_target_tokens=11, max_words=5)

#: Instructions as the compiler for GPUs prints them, shortened: a convolution and its gradients, attention, a product
#: in a kernel of its own, and a copy.
PROGRAM = """HloModule jit_step, is_scheduled=true

%gemm_fusion_dot (parameter_0: bf16[32,64], parameter_1: bf16[64,128]) -> bf16[32,128] {
  %parameter_0 = bf16[32,64] parameter(0)
  %parameter_1 = bf16[64,128] parameter(1)
  ROOT %dot.1 = bf16[32,128] dot(%parameter_0, %parameter_1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%sum (x: f32[], y: f32[]) -> f32[] {
  ROOT %add = f32[] add(%x, %y)
}

ENTRY %main.1 (a.1: bf16[32,64], b.1: bf16[64,128], x.1: bf16[2,8,8,16], k.1: bf16[4,3,3,16]) -> bf16[32,128] {
  %a.1 = bf16[32,64] parameter(0)
  %b.1 = bf16[64,128] parameter(1)
  %x.1 = bf16[2,8,8,16] parameter(2)
  %k.1 = bf16[4,3,3,16] parameter(3)
  %conv.1 = (bf16[2,8,8,4], u8[0]) custom-call(%x.1, %k.1), WINDOW, TARGET="CUDNN$convForward", NAME="jvp(HEAD)/conv"}
  %y.1 = bf16[2,8,8,4] get-tuple-element(%conv.1), index=0
  %filter.1 = (bf16[4,3,3,16], u8[0]) custom-call(%x.1, %y.1), WINDOW, TARGET="CUDNN$convBackwardFilter", NAME="BACK"}
  %input.1 = (bf16[2,8,8,16], u8[0]) custom-call(%y.1, %k.1), WINDOW, TARGET="CUDNN$convBackwardInput", NAME="BACK"}
  %attention.1 = (bf16[2,3,24,8], u8[0]) custom-call(%a.1), TARGET="CUDNN$fmhaSoftmax", NAME="jvp(vit)/fwd"}, FMHA
  %copy.1 = bf16[64,128] copy(%b.1), NAME="optimizer/add"}
  ROOT %gemm = bf16[32,128] fusion(%a.1, %copy.1), kind=kCustom, calls=%gemm_fusion_dot, NAME="jvp(encoder)/dot"}
}
"""
for _short, _long in {
    "CUDNN$": "__cudnn$",
    "TARGET=": "custom_call_target=",
    "NAME=": "metadata={op_name=",
    "BACK": "transpose(jvp(HEAD))/conv",
    "HEAD": "heatmap_heads",
    "WINDOW": "window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f",
    "FMHA": 'backend_config={"fmha": {"intermediate_tensor_shape": {"dimensions": ["2", "3", "24", "32"]}}}',
}.items():
    PROGRAM = PROGRAM.replace(_short, _long)


@pytest.fixture(autouse=True)
def benchmarks_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def test_operations_and_bytes_by_hand():
    import hlo_text

    program = hlo_text.Program(PROGRAM)
    kernels = {kernel.name: kernel for kernel in program.kernels()}
    convolution = 2 * (2 * 8 * 8 * 4) * 9 * 16  # the same work in all three directions
    attention = 2 * 2 * (2 * 3 * 24 * 32) * 8
    expected = {
        "conv.1": (convolution, 2 * (2048 + 576 + 512)),
        "filter.1": (convolution, 2 * (2048 + 512 + 576)),
        "input.1": (convolution, 2 * (512 + 576 + 2048)),
        "attention.1": (attention, 2 * (2048 + 1152)),
        "copy.1": (0, 2 * 2 * 8192),
        "gemm": (2 * 32 * 64 * 128, 2 * (2048 + 8192 + 4096)),
    }
    assert {name: (program.flops_of(k), program.bytes_of(k)) for name, k in kernels.items()} == expected


def test_a_part_takes_as_long_as_its_kernels(capsys, tmp_path, monkeypatch):
    import hlo_text
    import roofline

    estimated = roofline.estimate(hlo_text.Program(PROGRAM), peak=1e-3, bandwidth=1e-3)
    assert set(estimated["parts"]) == {"heatmap_heads", "encoder", "optimizer", "vit"}
    # At 1 GFLOP/s and 1 MB/s: the product by its operations, the copy by its bytes.
    assert estimated["parts"]["encoder"]["ms_products"] == pytest.approx(1e3 * max(524288 / 1e9, 28672 / 1e6), abs=1e-3)
    assert estimated["parts"]["optimizer"]["ms_rest"] == pytest.approx(1e3 * 32768 / 1e6, abs=1e-3)
    (tmp_path / "step.txt").write_text(PROGRAM)
    monkeypatch.setattr(sys, "argv", ["roofline", "--hlo", str(tmp_path / "step.txt")])
    roofline.main()
    printed = capsys.readouterr()
    assert json.loads(printed.out)["ms"] == pytest.approx(0.0, abs=0.01) and "| heatmap_heads |" in printed.err
    with pytest.raises(ValueError, match="no ENTRY computation"):
        hlo_text.Program("not a program")


def test_a_loop_runs_its_condition_and_its_body():
    import hlo_text

    line = "  %loop = (s32[]) while((s32[]) %state), condition=%cond.1, body=%body_2"
    assert hlo_text._instruction(line).calls == ("cond.1", "body_2")
    line = "  %branches = f32[] conditional(s32[] %i, f32[] %x, f32[] %x), branch_computations={%one, %other.3}"
    assert hlo_text._instruction(line).calls == ("one", "other.3")


def test_a_program_of_this_machine_counts_as_its_trace():
    """Products and a convolution, in the order and the fusions that the compiler likes."""
    import hlo_text

    def step(x, w, image, kernel):
        dimensions = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(image, kernel, (1, 1), "VALID", dimension_numbers=dimensions)
        return jax.nn.relu(x @ w).sum() + jnp.tanh(y).sum()

    shapes = [jnp.ones(s) for s in ((8, 16), (16, 32), (2, 6, 6, 4), (3, 3, 4, 8))]
    program = hlo_text.Program(jax.jit(step).lower(*shapes).compile().as_text())
    assert sum(map(program.flops_of, program.kernels())) == count_flops(step, *shapes)


# The training step for CUDA


@pytest.fixture(scope="module")
def cuda_step():
    """StableHLO of a whole training step: odd numbers of tokens, sub-pixel stages, every head."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import cuda_program

        model = dataclasses.replace(OTHER, remat="dots")  # as on GPUs
        return cuda_program.lowered(Config(model=model, data=DATA), 3)


def test_a_training_step_for_a_gpu_calls_fused_attention(cuda_step):
    """17 image tokens in the tower, 26 in the fusion stack, 11 in the decoder, which sees 9 of text: all made even.

    Each is computed once forwards: its result is kept for the backward pass.
    """
    calls = re.findall(r"@(__cudnn\$fmha\w+)", cuda_step)
    attentions = OTHER.vit.depth + OTHER.t5.encoder_layers + 2 * OTHER.t5.decoder_layers
    assert sum("Backward" in call for call in calls) == attentions
    assert sum("Backward" not in call for call in calls) == attentions
    masks = re.findall(r"mask_type\\22: \\22(\w+)", cuda_step)
    assert len(masks) == len(calls) and set(masks) <= {"PADDING", "PADDING_CAUSAL"}  # told the true lengths
    lengths = re.findall(r"custom_call @__cudnn\$fmha\w+\(.*?: \(tensor<3x(\d+)x2x8xbf16>", cuda_step)
    assert len(lengths) == len(calls) and all(int(length) % 8 == 0 for length in lengths)


def test_a_training_step_for_a_gpu_transposes_nothing_around_convolutions(cuda_step):
    """cuDNN computes channels-last convolutions as they come, forwards and backwards."""
    count = 0
    for function in cuda_step.split("func.func")[1:]:  # each has names of its own
        transposed = set(re.findall(r"(%\d+) = stablehlo.transpose", function))
        convolutions = re.findall(r"(%\d+) = stablehlo.convolution\((%\S+), (%\S+)\)(.*)", function)
        for _, image, kernel, rest in convolutions:
            labels = re.search(r"dim_numbers = \[(.*?)\]x", rest)[1].replace(" ", "")
            assert labels in ("b,0,1,f", "f,0,1,b")
            assert image not in transposed and kernel not in transposed
        # What a sub-pixel stage rearranges has six dimensions.
        inputs = set(re.findall(r"stablehlo.transpose (%\d+), dims = \[\d, \d, \d, \d\]", function))
        assert not inputs & {result for result, *_ in convolutions}
        count += len(convolutions)
    stages, heads = len(OTHER.heatmap_head.up_widths), 2
    assert count > 3 * 3 * stages * heads
