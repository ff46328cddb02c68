"""What the README says can be typed works as written."""

import re
from pathlib import Path

import pytest
import torch
import yaml

from ocl.cli import experiment as experiments
from ocl.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("code", blocks("python"))
def test_python_snippets_run(code):
    names = {}
    with torch.device("meta"):
        exec(code, names)
    assert any(isinstance(value, torch.nn.Module) for value in names.values())


@pytest.mark.parametrize("text", blocks("yaml"))
def test_yaml_snippets_build(text, tmp_path):
    path = tmp_path / "snippet.yaml"
    path.write_text(text)
    experiments.read(["--config", str(path)], prog="ocl").model(device="meta")


@pytest.mark.parametrize("line", re.findall(r"^    ocl (.*)$", README, flags=re.MULTILINE))
def test_commands_exist_and_name_existing_configs(line):
    words = line.split("#")[0].split()
    assert words[0] in COMMANDS
    assert all((ROOT / word).exists() for word in words if word.startswith("configs/"))


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert {"demo", "test", "test-gpu", "bench", "lint", "types"} <= targets
    assert set(re.findall(r"^    make ([a-z-]+)", README, flags=re.MULTILINE)) <= targets


def test_nothing_is_left_to_fill_in():
    assert "@@" not in README


def test_links_point_at_files():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target


def test_every_config_key_in_the_docs_is_yaml():
    for text in blocks("yaml"):
        assert isinstance(yaml.safe_load(text), dict)
