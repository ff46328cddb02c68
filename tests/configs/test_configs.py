"""Every shipped config parses, builds on the meta device, and says in its header how it was made."""

from pathlib import Path

import pytest

from ocl.cli import experiment as experiments

FOLDER = Path(__file__).resolve().parents[2] / "configs"
CONFIGS = sorted(FOLDER.glob("*/*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_config_builds(path):
    model = experiments.read(["--config", str(path)], prog="ocl").model(device="meta")
    assert any(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_config_header_names_source_command_and_score(path):
    header = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    assert f"configs/{path.parent.name}/{path.name}" in header and "Command:" in header
    assert "Hardware:" in header and "score" in header


def test_there_are_configs():
    assert len(CONFIGS) >= 4
