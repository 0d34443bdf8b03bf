"""Every module of version 0.1 that moved is found under its former name, with a warning that says where it is now."""

import importlib
import pathlib
import subprocess
import sys
import warnings

import pytest

import data_pipelines
import rahf
from rahf import config
from rahf.core import former_names

ROOT = pathlib.Path(__file__).resolve().parents[2]

#: What README, documents and notebooks of version 0.1 imported, as they wrote it, and how they used it.
STATEMENTS = {
    "from rahf.batch import HEATMAPS, SCORES": "SCORES[3] == 'overall' and len(HEATMAPS) == 2",
    "from rahf import viz": "viz.panel and viz.overlay and viz.feedback_panel and viz.score_bars and viz.PALETTES",
    "import rahf.viz": "rahf.viz.prompt_html and rahf.viz.printable",
    "import rahf.compile_cache": "rahf.compile_cache.enable",
    "import rahf.cpu": "rahf.cpu.restart and rahf.cpu.dispatch_in_line and rahf.cpu.TUNABLES",
    "import rahf.origin": "rahf.origin.model_licenses",
    "import rahf.provenance": "rahf.provenance.ModelMismatch and rahf.provenance.weights",
    "from rahf.models.flops import count_flops": "count_flops",
    "from rahf.steer import energy, schedules, universal": (
        "energy.score and energy.heatmap and energy.function and energy.Energy "
        "and schedules.ddim and schedules.scaled_linear and universal.sample and universal.noise"
    ),
    "from rahf.steer.options import GuidanceOptions": "GuidanceOptions",
    "from rahf.steer.denoisers import inpainting": "inpainting",
    "from rahf.steer.select import select": "select",
    "from rahf.steer.choose import Choice, choose": "Choice and choose",
    "from rahf.diffusion.painter import painter": "painter",
    "from rahf.train.loop import train": "train",
    "from data_pipelines.labelled import Labels": "Labels",
    "import data_pipelines.records": "data_pipelines.records.Record",
}


@pytest.fixture(autouse=True)
def fresh():
    """Former names are imported anew in each test, and gone after it: as modules, and as attributes of packages."""
    packages = {name: sys.modules[name] for name in ("rahf", "data_pipelines")}
    packages |= {f"rahf.{name}": importlib.import_module(f"rahf.{name}") for name in ("steer", "diffusion")}
    attributes = {name: dict(vars(package)) for name, package in packages.items()}
    yield
    for name in former_names.MODULES.keys() & sys.modules.keys():
        del sys.modules[name]
    for name, package in packages.items():
        for extra in [key for key in vars(package) if f"{name}.{key}" in former_names.MODULES]:
            delattr(package, extra)
        vars(package).update(attributes[name])


def run(statement: str) -> tuple[dict, list[warnings.WarningMessage]]:
    namespace: dict = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exec(compile(statement, "theirs.py", "exec"), namespace)
    return namespace, caught


@pytest.mark.parametrize("statement", STATEMENTS)
def test_what_version_0_documented_still_works(statement):
    namespace, caught = run(statement)
    assert caught and all(one.category is DeprecationWarning for one in caught)
    assert {one.filename for one in caught} == {"theirs.py"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names inside of a module may have changed, too
        assert eval(STATEMENTS[statement], namespace)


#: Names inside of modules that README, documents and notebooks of version 0.1 used, and what they are now.
ATTRIBUTES = {
    "rahf.provenance.KnownPrediction": "rahf.critic.provenance:CriticPrediction",
    "rahf.predict.given_prompts": "rahf.critic.predict:given_prompts",
    "rahf.steer.choose.Choice": "rahf.steer.best_of_n_files:SelectionOptions",
    "rahf.steer.choose.choose": "rahf.steer.best_of_n_files:select_files",
    "rahf.steer.schedules.cosine": "rahf.diffusion.schedules:squaredcos_cap_v2",
    "rahf.diffusion.painter": "rahf.steer:painter",
}


@pytest.mark.parametrize("former", ATTRIBUTES)
def test_names_inside_of_modules(former):
    module, _, name = former.rpartition(".")
    place, _, current = ATTRIBUTES[former].partition(":")
    value, caught = run(f"import importlib; value = getattr(importlib.import_module({module!r}), {name!r})")
    assert value["value"] is getattr(importlib.import_module(place), current)
    messages = [str(one.message) for one in caught if one.category is DeprecationWarning]
    assert any(name in message and current in message for message in messages) or name == current, messages
    assert messages


@pytest.mark.parametrize(
    ("former", "current"), [("demo.py", "critic/demo.py"), ("demo_diffusion.py", "diffusion/demo.py")]
)
def test_configs(former, current):
    with pytest.warns(DeprecationWarning, match=f"configs/{former} is now called configs/{current}"):
        file = config.find(f"configs/{former}")
    assert file.as_posix().endswith(f"configs/{current}") and config.find(former) == file


@pytest.mark.parametrize("former", sorted(former_names.MODULES))
def test_every_former_module_is_found(former):
    current = former_names.MODULES[former]
    current = [current] if isinstance(current, str) else list(current)
    namespace, caught = run(f"import importlib; module = importlib.import_module({former!r})")
    expected = f"{former} is now {' and '.join(current)}; the old name will be gone in the next version"
    assert expected in [str(one.message) for one in caught]
    for module in map(importlib.import_module, current):
        for name in getattr(module, "__all__", [n for n in vars(module) if n[0].isalpha()]):
            value = getattr(namespace["module"], name)
            assert len(current) > 1 or value is getattr(module, name)
    assert run(f"import {former}")[1] == []  # said once


def test_no_module_of_today_has_a_former_name():
    for name in former_names.MODULES.keys() - former_names._FUNCTIONS.keys():
        path = ROOT / name.replace(".", "/")
        assert not path.with_suffix(".py").exists() and not (path / "__init__.py").exists()


def test_attributes_of_the_face():
    with pytest.warns(DeprecationWarning, match="rahf.origin is now rahf.core.licenses") as caught:
        assert rahf.origin is importlib.import_module("rahf.core.licenses")
    assert caught[0].filename == __file__
    with pytest.warns(DeprecationWarning, match="data_pipelines.records is now data_pipelines.store.records"):
        assert data_pipelines.records.Record
    for package, name in ((rahf, "nothing"), (data_pipelines, "nothing"), (rahf, "commands")):
        with pytest.raises(AttributeError, match=f"has no attribute '{name}'"):
            getattr(package, name)
    with pytest.raises(ImportError):
        importlib.import_module("rahf.nothing")
    assert "viz" not in dir(rahf) and {"load", "train", "RahfError"} <= {*dir(rahf)}


def test_a_divided_module_knows_what_it_lacks():
    module = run("from rahf import viz")[0]["viz"]
    with pytest.raises(AttributeError, match="module 'rahf.viz' has no attribute 'nothing'"):
        _ = module.nothing
    with pytest.raises(TypeError, match="'rahf.viz' is not callable"):
        module()


def test_the_command_line_is_still_a_function(capsys):
    from rahf import cli

    for _ in range(2):  # before and after the module of this name was imported
        with pytest.warns(DeprecationWarning, match=r"rahf.cli.main\(…\) is now rahf.cli.main.main\(…\)"):
            with pytest.raises(SystemExit):
                cli.main(["--version"])
    assert capsys.readouterr().out == f"rahf {rahf.__version__}\n" * 2
    with pytest.raises(AttributeError, match="'rahf.cli' has no attribute 'nothing'"):
        _ = cli.nothing


def test_either_package_finds_its_names_alone():
    """In a new process, and without loading JAX."""
    code = (
        "import sys, warnings; warnings.simplefilter('ignore'); from {}; "
        "assert 'jax' not in sys.modules and 'flax' not in sys.modules"
    )
    for statement in ("rahf.batch import SCORES", "data_pipelines.records import Record"):
        subprocess.run([sys.executable, "-c", code.format(statement)], check=True, cwd=ROOT)
