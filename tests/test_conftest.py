"""The guards of conftest really guard."""

import socket

import pytest


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_no_test_can_open_an_internet_socket(family):
    with pytest.raises(RuntimeError, match="no network"):
        socket.socket(family, socket.SOCK_STREAM)
    with pytest.raises(RuntimeError, match="no network"):
        socket.getaddrinfo("localhost", 80)


def test_processes_of_this_machine_may_talk():
    left, right = socket.socketpair()
    with left, right:
        left.send(b"x")
        assert right.recv(1) == b"x"


@pytest.mark.parametrize("kind", ["dinov2", "dinov2_registers", "dino", "dinov3", "mae", "clip", "siglip"])
def test_tiny_transformers_are_complete_folders(tiny_vit, kind):
    assert {"config.json", "model.safetensors"} <= {path.name for path in tiny_vit(kind).iterdir()}
