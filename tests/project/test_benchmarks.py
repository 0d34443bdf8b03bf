"""The benchmarks of the network: what they print, and that the PyTorch peer is the same network."""

import dataclasses
import json
import pathlib
import sys

import jax
import numpy as np
import pytest

from rahf.config import Config, DataConfig, LossConfig
from rahf.nn import functional
from tests.helpers.model_maker import OTHER, PLAIN, SMALLEST, fake, made

ROOT = pathlib.Path(__file__).resolve().parents[2]
DATA = DataConfig(batch_size=3, max_prompt_tokens=9, max_target_tokens=11, max_words=5)


@pytest.fixture
def benchmark(monkeypatch, capsys):
    """Runs the program of a benchmark on a tiny network; returns the one line that it prints."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import measuring

    config = Config(model=SMALLEST, data=DATA)
    monkeypatch.setattr(measuring, "preset", lambda name, batch, fields: config)
    monkeypatch.setattr(measuring, "matmul_peak", lambda dtype: 0.5)

    def run(name, *arguments):
        program = __import__(name)
        monkeypatch.setattr(sys, "argv", [name, "--rounds", "2", "--seconds", "0", *arguments])
        program.main()
        return json.loads(capsys.readouterr().out)

    return run


SPEED = ("images_per_second", "ms", "tflop_per_second", "share_of_matmul_peak", "peak_gib", "compile_seconds",
         "first_step_seconds")  # fmt: skip


def test_train_step(benchmark):
    found = benchmark("train_step")
    assert set(SPEED) <= found.keys()
    assert found["images_per_second"] == pytest.approx(3e3 / found["ms"], rel=0.02)
    assert found["batch"] == 3 and found["planned_gib"]["together"] >= found["planned_gib"]["arguments"]
    planned = benchmark("train_step", "--compile-only")
    assert planned["gib"] == found["planned_gib"] and "ms" not in planned


def test_inference(benchmark):
    found = benchmark("inference", "--mode", "scores")
    assert set(SPEED) <= found.keys() and found["mode"] == "scores"
    assert found["images_per_second"] == pytest.approx(3e3 / found["ms"], rel=0.02)


def test_torch_peer_shows_the_peak_beside_the_ratio(benchmark, monkeypatch):
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install rahf[torch]")
    peak = benchmark("train_step")["matmul_peak_tflop_per_second"]
    import torch_peer

    monkeypatch.setattr(torch_peer, "torch_matmul_peak", lambda dtype: 2 * peak)
    compared = benchmark("torch_peer")
    assert compared["matmul_peak_tflop_per_second"] == {"jax": peak, "torch": 2 * peak}
    for name in ("ours", "eager"):
        share = compared["tflop_per_step"] / (1e-3 * compared[f"{name}_ms"]) / (2 * peak)
        assert compared[f"{name}_share_of_matmul_peak"] == pytest.approx(share, abs=2e-6)
    assert compared["ratio"]["min"] <= compared["ratio"]["median"]
    for work in ("train", "all", "scores"):
        alone = benchmark("torch_peer", "--variant", "eager", "--work", work)
        assert alone["images_per_second"] > 0 and alone["device"] == "cpu" and alone["batch"] == 3
        assert "share_of_matmul_peak" not in alone  # its products and convolutions have no common limit
    assert torch.is_grad_enabled()


def test_pytorch_takes_half_the_batch_where_the_memory_does_not_suffice(monkeypatch, capsys):
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install rahf[torch]")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import torch_peer

    def inference(config, size, tuned, work):
        if size > least:
            raise torch.OutOfMemoryError
        return lambda: torch.zeros(size)

    monkeypatch.setattr(torch_peer, "torch_inference", inference)
    monkeypatch.setattr(torch_peer, "torch_matmul_peak", lambda dtype: 1.0)
    for name in ("empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    least = 8
    assert torch_peer.largest(None, 32, False, "scores", 1, 0.001)["batch"] == 8
    assert capsys.readouterr().err == "out of memory with 32 examples\nout of memory with 16 examples\n"
    least = 0
    assert torch_peer.largest(None, 4, False, "scores", 1, 0.001) == {"error": "out of memory"}


def test_generate_compares_the_same_networks(benchmark, monkeypatch):
    """Whole samplings are compared in tests/diffusion/test_pipeline_parity.py."""
    pytest.importorskip("diffusers", reason="needs diffusers: pip install rahf[torch]")
    import generate

    still = lambda *_: dict.fromkeys(("ours", "eager"), lambda: np.ones(1))  # noqa: E731
    monkeypatch.setattr(generate, "samplings", still)
    measured = benchmark("generate", "--preset", "tiny")
    assert measured["side"] == 32 and measured["tflop_per_unet_step"] > 0
    for part in ("unet_step", "sampling"):
        work = measured[part]
        assert work["largest_difference"] <= 1e-4 * max(work["largest_value"], 1) and work["largest_value"] > 0.01
        assert work["ratio"]["min"] <= work["ratio"]["median"] <= work["ratio"]["max"] and work["ours_ms"] > 0


def test_presets_are_configs(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import measuring

    monkeypatch.undo()
    for name in ("demo", *measuring.PRESETS):
        config = measuring.preset(name, 4, ["--model.remat", "block"])
        assert config.data.batch_size == 4 and config.model.remat == "block"
        assert config.model.t5.dropout == config.model.vit.dropout == 0 and config.data.max_target_tokens <= 64


@pytest.mark.parametrize("name", ["plain", "other"])
def test_the_pytorch_peer_is_the_same_network(name, monkeypatch):
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install rahf[torch]")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import torch_network
    import torch_peer

    plain = dict(vit=dataclasses.replace(OTHER.vit, activation="gelu", layer_scale=False),
                 t5=dataclasses.replace(OTHER.t5, image_relative_bias=True))  # fmt: skip
    config = PLAIN if name == "plain" else dataclasses.replace(OTHER, **plain)
    (graphdef, params), batch = made(config), fake()
    whole = Config(model=config, data=DATA, loss=LossConfig(heatmap_weight=2.0, heatmap_loss="bce"))
    network = torch_peer.network(whole, functional.flatten(params))
    image = (torch.from_numpy(batch.image).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    ids = [torch.from_numpy(x).long() for x in (batch.text_ids, batch.target_ids)]
    found = network(image, ids[0], torch.from_numpy(batch.text_mask), ids[1])
    wanted = jax.jit(lambda p, b: functional.merge(graphdef, p)(b))(params, batch)
    for a, b in zip(found, (wanted.heatmaps, wanted.scores, wanted.sequence), strict=True):
        np.testing.assert_allclose(a.detach().numpy(), b, rtol=1e-4, atol=2e-4)
    np.testing.assert_allclose(
        network.scores(image, ids[0], torch.from_numpy(batch.text_mask)).detach(), found[1].detach()
    )
    from rahf.critic import losses

    given = {"heatmaps": torch.from_numpy(batch.heatmaps).float() / 255, "scores": torch.from_numpy(batch.scores),
             "target_ids": ids[1], "target_mask": torch.from_numpy(batch.target_mask)}  # fmt: skip
    loss = torch_network.loss(whole, found, given)
    np.testing.assert_allclose(loss.item(), losses.total(whole.loss, wanted, batch)[0], rtol=1e-4)
