"""Shared fixtures. Everything heavy is made once per test run."""

import gc
import importlib.metadata
import os
import pathlib
from collections.abc import Iterator

import pytest

from tests.helpers.unchanged import unchanged

ROOT = pathlib.Path(__file__).resolve().parent.parent

# One compilation cache for all tests and the processes they start, and one thread pool that fits. JAX reads these when
# it is imported, so nothing above this line may import it.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Programs of tests run a few steps: optimising them takes most of the time that compiling takes. See `optimised`.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# So do its newer generator of code for CPUs, which jaxlib 0.11 and later always use, and its threads beside ours.
_FLAGS = ["--xla_cpu_parallel_codegen_split_count=1"]
if tuple(int(n) for n in importlib.metadata.version("jaxlib").split(".")[:2]) < (0, 11):
    _FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_FLAGS])
os.environ.setdefault("OMP_NUM_THREADS", "1")  # PyTorch's: test processes share the cores already
# Tracing allocates many objects, and JAX, PyTorch and TFDS keep millions: at Python's own thresholds (700, 10, 10) 3 to
# 8% of the time goes into looking for cycles.
gc.set_threshold(20_000, 10, 10)
# Programs that tests start find this checkout and the helpers of tests.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))


#: Files of few and long tests. At the end they would keep one process busy while the others wait.
LONG = (
    "test_notebooks.py",
    "test_many_kills.py",
    "test_distributed.py",
    "test_golden_v0.py",
    "test_resume.py",
    "test_sharding.py",
    "test_baselines_run.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, all else in its order."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.fixture(scope="module")
def optimised():
    """For files whose numbers must be those of programs as users run them."""
    import jax

    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder of reference data beside the repository; a user's clone does not have it."""
    folder = ROOT.parent / "shared"
    if not (folder / "data" / "rehearsal").is_dir():
        pytest.skip("the reference data (../shared) is not beside this clone")
    return folder


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory) -> Iterator[pathlib.Path]:
    """A run directory with an untrained network of 32 x 32 pixels whose outputs vary from input to input."""

    from rahf import config as config_lib
    from rahf.critic.networks import build
    from rahf.nn import functional
    from rahf.text import Tokenizer, train_tokenizer
    from rahf.training.checkpoint import Checkpointer

    folder = tmp_path_factory.mktemp("runs") / "tiny"
    folder.mkdir()
    tokenizer = Tokenizer(train_tokenizer(["a red cat on a blue mat", "two dogs and one green bird"], 400))
    (folder / "tokenizer.model").write_bytes(tokenizer.model)
    model = config_lib.CriticConfig(
        image_size=32,
        vit=config_lib.ViTConfig(patch_size=8, width=32, depth=2, heads=2, mlp_width=64),
        t5=config_lib.T5Config(
            vocab_size=tokenizer.vocab_size + 5,
            width=32,
            head_width=16,
            heads=2,
            mlp_width=64,
            encoder_layers=2,
            decoder_layers=1,
        ),
        heatmap_head=config_lib.HeatmapHeadConfig(conv_widths=(16,), up_widths=(16, 8), prior=0.4),
        score_head=config_lib.ScoreHeadConfig(conv_widths=(16,), dense_widths=(16,)),
    )
    data = config_lib.DataConfig(max_prompt_tokens=24, max_target_tokens=32, max_words=8)
    config = config_lib.Config(workdir=str(folder), data=data, model=model)
    (folder / "config.json").write_text(config_lib.to_json(config))
    params = functional.init(build.build(model), seed=0)
    for name, part in params.items():  # the heads start with almost constant outputs
        if name.startswith(("heatmap_", "score_")):
            part["out"]["kernel"] = part["out"]["kernel"] * 20
    checkpointer = Checkpointer(folder, keep=1)
    checkpointer.save_best(7, params, {"scores/mean/plcc": 0.0})
    checkpointer.close()
    yield from unchanged(folder)


@pytest.fixture(scope="session")
def tiny_critic(tiny_run):
    """`tiny_run`, loaded once, so that its functions are compiled once."""
    import rahf

    return rahf.load(tiny_run)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Iterator[pathlib.Path]:
    """A prepared dataset of synthetic scenes, 64 x 64 pixels: train 48, dev 12, test 10."""
    from data_pipelines.synthetic.prepare import prepare

    folder = tmp_path_factory.mktemp("data") / "tiny"
    prepare(folder, train=48, dev=12, test=10, size=64, progress=False)
    yield from unchanged(folder)


@pytest.fixture(scope="session")
def tiny_config(tiny_data, tmp_path_factory) -> pathlib.Path:
    """A config file of a training run on `tiny_data` that takes seconds."""
    from tests.helpers import train_maker

    file = tmp_path_factory.mktemp("configs") / "tiny.py"
    file.write_text(train_maker.CONFIG.format(data=str(tiny_data)))
    return file


@pytest.fixture(scope="session")
def finished_run(tiny_config, tmp_path_factory) -> Iterator[pathlib.Path]:
    """The run directory of `tiny_config`, trained to its last step without a break. A test that changes it fails."""
    from rahf.cli import main as cli

    folder = tmp_path_factory.mktemp("finished") / "run"
    assert cli.main(["train", str(tiny_config), "--workdir", str(folder)]) == 0
    yield from unchanged(folder)


@pytest.fixture(scope="session")
def small_config(tiny_data, tmp_path_factory) -> pathlib.Path:
    """A config file of a training run on `tiny_data` that compiles in a moment; see `small_family`."""
    from tests.helpers import small_family

    file = tmp_path_factory.mktemp("configs") / "small.py"
    file.write_text(small_family.CONFIG.format(data=str(tiny_data)))
    return file


@pytest.fixture(scope="session")
def finished_small_run(small_config, tmp_path_factory) -> Iterator[pathlib.Path]:
    """The run directory of `small_config`, trained to its last step without a break. A test that changes it fails."""
    from tests.helpers import train_maker

    folder = tmp_path_factory.mktemp("finished") / "small"
    assert train_maker.train(small_config, folder) == 0
    yield from unchanged(folder)
