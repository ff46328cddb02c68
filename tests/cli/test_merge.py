"""Config files laid over one another."""

import pytest

from ocl.cli import experiment as experiments
from ocl.cli.merge import lay_over
from ocl.errors import ConfigError


def test_mappings_are_joined_key_by_key_and_nothing_is_changed_in_place():
    below = {"model": {"class_path": "coda", "init_args": {"num_slots": 7, "drop_rate": 0.1}}, "training": {"steps": 3}}
    found = lay_over(below, {"model": {"init_args": {"num_slots": 5}}, "data": "Scenes"}, "x.yaml")
    assert found["model"] == {"class_path": "coda", "init_args": {"num_slots": 5, "drop_rate": 0.1}}
    assert found["training"] == {"steps": 3} and found["data"] == "Scenes"
    assert below["model"]["init_args"]["num_slots"] == 7


def test_another_class_starts_anew_and_the_same_one_keeps_its_arguments():
    below = {"class_path": "ocl.encoders.CNN", "init_args": {"width": 8}}
    other = {"class_path": "ResNet", "init_args": {"depth": 18}}
    assert lay_over(below, other, "x.yaml") == other
    same = lay_over(below, {"class_path": "CNN", "init_args": {"stride": 4}}, "x.yaml")
    assert same["init_args"] == {"width": 8, "stride": 4}


def test_a_bare_class_name_takes_arguments():
    assert lay_over("CNN", {"init_args": {"width": 8}}, "x.yaml") == {"class_path": "CNN", "init_args": {"width": 8}}


def test_parts_of_a_list_are_changed_and_removed_by_their_class():
    losses = ["Reconstruction", {"class_path": "ocl.losses.MaskEntropy", "init_args": {"weight": 0.1}}]
    changed = lay_over(losses, {"MaskEntropy": {"weight": 0.2}, "Reconstruction": None}, "x.yaml")
    assert changed == [{"class_path": "ocl.losses.MaskEntropy", "init_args": {"weight": 0.2}}]
    assert lay_over(losses, ["MaskEntropy"], "x.yaml") == ["MaskEntropy"]


@pytest.mark.parametrize(("losses", "count"), [(["Reconstruction"], 0), (["MaskEntropy", "ocl.losses.MaskEntropy"], 2)])
def test_a_part_that_is_not_the_only_one_of_its_name_is_refused(losses, count):
    with pytest.raises(ConfigError, match=f"x.yaml: losses: MaskEntropy names {count} parts of a list that holds"):
        lay_over({"losses": losses}, {"losses": {"MaskEntropy": None}}, "x.yaml")


def test_later_files_and_then_options_win(tiny_config, tmp_path):
    over = tmp_path / "over.yaml"
    over.write_text("model: {init_args: {num_slots: 5, encoder: {init_args: {depth: 2}}}}\ntraining: {steps: 9}\n")
    words = ["--config", str(tiny_config), "--training.seed", "3", "--config", str(over), "--training.steps", "8"]
    experiment = experiments.read(words, prog="ocl")
    assert (experiment.training.steps, experiment.training.seed, experiment.training.batch_size) == (8, 3, 4)
    arguments = experiment.config.model.init_args
    assert (arguments.num_slots, arguments.encoder.init_args.depth, arguments.encoder.init_args.width) == (5, 2, 8)


def test_an_unknown_key_of_a_later_file_is_named(tiny_config, tmp_path):
    over = tmp_path / "over.yaml"
    over.write_text("model: {init_args: {num_slotts: 5}}\n")
    with pytest.raises(ConfigError, match="num_slotts"):
        experiments.read(["--config", str(tiny_config), "--config", str(over)], prog="ocl")


def test_a_later_file_cannot_name_foreign_code_either(tiny_config, tmp_path):
    over = tmp_path / "over.yaml"
    over.write_text("model: {init_args: {encoder: stranger_parts.start}}\n")
    with pytest.raises(ConfigError, match=r"over.yaml.*--import stranger_parts"):
        experiments.read(["--config", str(tiny_config), "--config", str(over)], prog="ocl")
