"""A run that trains in a second, and pictures, shared by the tests of all commands."""

import pytest

from ocl.cli.main import main
from ocl.data import Scenes
from ocl.vis.png import to_picture, write_png

TINY = """
model:
  class_path: slot_attention
  init_args:
    num_slots: 3
    slot_dim: 8
    encoder: {class_path: CNN, init_args: {width: 8, depth: 3, kernel: 3, stride: 8}}
    decoder: {class_path: PatchMLP, init_args: {slot_dim: 8, patch: 8, hidden_dim: 16, depth: 2}}
data: {class_path: Scenes, init_args: {image_size: 64}}
held_out: {class_path: Scenes, init_args: {image_size: 64, split: test, size: 6}}
training: {steps: 4, batch_size: 4, log_every: 2, eval_every: 4, checkpoint_every: 2}
"""


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="session")
def tiny_run(tiny_config, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "tiny"
    assert main(["train", "--config", str(tiny_config), "--run", str(run)]) == 0
    return run


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A folder with 0.png to 2.png."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(3):
        write_png(folder / f"{number}.png", to_picture(Scenes(image_size=64)[number].image))
    return folder
