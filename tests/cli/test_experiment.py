"""Configs: short names, overrides, clear errors, and no code from elsewhere."""

import sys

import pytest

from ocl.cli import experiment as experiments
from ocl.cli.main import main
from ocl.data import Scenes
from ocl.errors import ConfigError


def read(path, *words, packages=()):
    return experiments.read(["--config", str(path), *words], prog="ocl", packages=packages)


def test_a_part_is_swapped_by_its_short_name(tiny_config):
    experiment = read(tiny_config, "--model.encoder", "ResNet", "--model.encoder.base_width", "2")
    assert type(experiment.model(device="meta").encoder).__name__ == "ResNet"


def test_a_builder_is_chosen_by_its_short_name():
    experiment = experiments.read(["--model", "slot_attention", "--model.num_slots", "4"], prog="ocl")
    assert experiment.model(device="meta").init.num_slots == 4
    assert isinstance(experiment.data(), Scenes)


def test_the_same_seed_gives_the_same_weights(tiny_config):
    first, second = (read(tiny_config).model().state_dict() for _ in range(2))
    assert all(bool((first[name] == second[name]).all()) for name in first)


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["--training.stepps", "3"], "stepps"),
        (["--training.steps", "many"], "steps"),
        (["--model.encoder.widht", "3"], "widht"),
        (["--model.encoder", "CNNN"], "CNNN"),
        (["--data.level", "hard"], "level"),
        (["--training.optimizer.lr", "-1"], "optimizer.lr"),
        (["--held_out.root", "x"], "root"),
    ],
)
def test_unknown_and_ill_typed_keys_are_named(tiny_config, words, key):
    with pytest.raises(ConfigError, match=key):
        read(tiny_config, *words)


def test_a_key_that_no_part_knows_is_named_in_a_file(tmp_path, tiny_config):
    path = tmp_path / "wrong.yaml"
    path.write_text(tiny_config.read_text() + "\nlerning_rate: 3\n")
    with pytest.raises(ConfigError, match="lerning_rate"):
        read(path)


@pytest.mark.parametrize("content", ["[1, 2", "just words", ""])
def test_a_file_that_is_no_config_is_refused(tmp_path, content):
    path = tmp_path / "wrong.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"wrong\.yaml"):
        read(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read(tmp_path / "absent.yaml")


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """A package that leaves a trace when it is imported."""
    folder = tmp_path / "packages"
    folder.mkdir()
    code = "from ocl.slots import GaussianInit\n\ndef start(num_slots: int, slot_dim: int) -> GaussianInit:\n"
    (folder / "stranger_parts.py").write_text(code + "    return GaussianInit(num_slots, slot_dim)\n")
    monkeypatch.syspath_prepend(str(folder))
    yield "stranger_parts"
    sys.modules.pop("stranger_parts", None)


@pytest.mark.parametrize(
    "text",
    [
        "model: stranger_parts.start",
        "model: {class_path: stranger_parts.start}",
        "model: '{class_path: stranger_parts.start}'",
        'model: "class_path: stranger_parts.start"',
        "losses: ['{class_path: stranger_parts.start}']",
    ],
)
def test_a_config_never_imports_a_package_that_was_not_named(tmp_path, stranger, text):
    path = tmp_path / "foreign.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="--import stranger_parts"):
        read(path)
    assert stranger not in sys.modules


@pytest.mark.parametrize(
    "value", ["stranger_parts.start", "{class_path: stranger_parts.start}", "class_path: stranger_parts.start"]
)
def test_an_override_never_imports_a_package_that_was_not_named(tiny_config, stranger, value):
    with pytest.raises(ConfigError, match="--import stranger_parts"):
        read(tiny_config, "--model.init", value)
    assert stranger not in sys.modules


def test_a_run_folder_with_foreign_code_in_its_config_is_refused(tiny_run, tmp_path, stranger, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text((tiny_run / "config.yaml").read_text().replace("ocl.encoders.CNN", "stranger_parts.start"))
    assert main(["segment", str(run), str(tmp_path)]) == 2
    assert "not part of ocl" in capsys.readouterr().err
    assert stranger not in sys.modules


def test_a_package_that_the_user_names_takes_part(tiny_config, stranger):
    words = ["--model.init", "stranger_parts.start", "--model.init.num_slots", "9", "--model.init.slot_dim", "8"]
    assert read(tiny_config, *words, packages=[stranger]).model(device="meta").init.num_slots == 9
