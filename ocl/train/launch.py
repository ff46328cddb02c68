"""How the processes of a run find one another: the variables that torchrun, deepspeed and Slurm's srun set."""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from ocl.errors import ConfigError, ProcessError
from ocl.train.world import World

_NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_SLURM_PORT = 29_500
_EXAMPLE = "start with `torchrun --nproc_per_node N -m ocl.cli.main train ...`, also for one process (docs/scale.md)"


@dataclass(frozen=True)
class Launch:
    """This process is number `rank` of `size`, and number `local_rank` on its machine; process 0 answers at address:port."""

    rank: int
    size: int
    local_rank: int
    address: str
    port: int


def read_launcher(variables: Mapping[str, str] = os.environ) -> Launch:
    """What the launcher says. Raises ConfigError where a variable is absent or no launcher was used."""
    given = {name: variables[name] for name in _NEEDED if variables.get(name)}
    if "RANK" not in given and "SLURM_PROCID" in variables:
        given |= _from_slurm(variables)
    missing = [name for name in _NEEDED if name not in given]
    if missing:
        raise ConfigError(f"engine DeepSpeed needs the variables of a launcher, {', '.join(missing)} not set; {_EXAMPLE}.")
    try:
        rank, size, local_rank, port = (int(given[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"))
    except ValueError as error:
        raise ConfigError(f"the launcher's variables must be whole numbers ({error}); {_EXAMPLE}.") from error
    if not (0 <= rank < size and local_rank >= 0 and 0 < port < 65536):
        found = ", ".join(f"{name}={given[name]}" for name in _NEEDED)
        raise ConfigError(f"the launcher's variables contradict one another ({found}); {_EXAMPLE}.")
    return Launch(rank, size, local_rank, given["MASTER_ADDR"], port)


def start(launch: Launch, device: torch.device, *, timeout: float) -> World:
    """Meet the other processes. timeout: seconds that one waits for another, here and in every later exchange.

    Raises ConfigError where the port is taken, ProcessError where not all processes come.
    """
    served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun holds the port, and says so if it is taken
    if launch.rank == 0 and not served:
        _check_port(launch)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    options: dict[str, Any] = {"device_id": device} if device.type == "cuda" else {}
    os.environ.update({"RANK": str(launch.rank), "WORLD_SIZE": str(launch.size), "LOCAL_RANK": str(launch.local_rank),
                       "MASTER_ADDR": launch.address, "MASTER_PORT": str(launch.port)})  # fmt: skip
    patience = timedelta(seconds=timeout)
    try:
        master = launch.rank == 0 and not served
        store = dist.TCPStore(launch.address, launch.port, launch.size, is_master=master, timeout=patience, wait_for_workers=False)
        meeting = dist.PrefixStore(f"ocl/{_agree(store, launch, timeout)}", store)
        dist.init_process_group(backend, store=meeting, rank=launch.rank, world_size=launch.size, timeout=patience, **options)
    except (RuntimeError, ValueError) as error:
        if "EADDRINUSE" in str(error):
            raise _port_error(launch) from error
        where = f"{launch.address}:{launch.port}"
        raise ProcessError(
            f"process {launch.rank} of {launch.size} could not meet the others at {where} ({str(error).splitlines()[0]}); "
            "see that all were started, with one MASTER_ADDR and MASTER_PORT, and that no firewall stands between."
        ) from error
    return World.of_launched(timeout=timeout)


def _from_slurm(variables: Mapping[str, str]) -> dict[str, str]:
    """srun's words for the same things; the port follows from the job's number, so that two jobs can share a machine."""
    names = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"}
    found = {name: variables[slurm] for name, slurm in names.items() if variables.get(slurm)}
    address = variables.get("MASTER_ADDR") or variables.get("SLURM_LAUNCH_NODE_IPADDR")
    if address:
        found["MASTER_ADDR"] = address
    found["MASTER_PORT"] = variables.get("MASTER_PORT") or str(_SLURM_PORT + int(variables.get("SLURM_JOB_ID", "0")) % 10_000)
    return found


def _agree(store: dist.Store, launch: Launch, timeout: float) -> str:
    """A name for this start that all its processes share: torchrun's store outlives them, and keeps addresses of dead ones.

    Its TORCHELASTIC_RESTART_COUNT is no such name, a node that saw another one come back before its own processes ended counts
    less. So process 0 draws the name, and tells it to whoever asks with a name of its own that was drawn for this start too.
    """
    own = uuid.uuid4().hex
    if launch.rank:
        store.set(f"ocl/asked/{launch.rank}", own)
        name = store.get(f"ocl/answered/{own}").decode()
        store.set(f"ocl/joined/{name}/{launch.rank}", "")
        return name
    absent, limit = set(range(1, launch.size)), time.monotonic() + timeout
    while absent:
        if time.monotonic() > limit:
            raise RuntimeError(f"process {_first_few(absent)} did not come in {timeout:g} s")
        for rank in sorted(absent):
            if store.check([f"ocl/asked/{rank}"]):  # perhaps by a dead process, in which case it is asked again
                store.set(f"ocl/answered/{store.get(f'ocl/asked/{rank}').decode()}", own)
            if store.check([f"ocl/joined/{own}/{rank}"]):
                absent.discard(rank)
        time.sleep(0.02)
    return own


def _first_few(ranks: Iterable[int]) -> str:
    first, *others = sorted(ranks)
    return str(first) + "".join(f", {rank}" for rank in others[:7]) + (f" and {len(others) - 7} more" if len(others) > 7 else "")


def _check_port(launch: Launch) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", launch.port))
        except OSError as error:
            raise _port_error(launch) from error


def _port_error(launch: Launch) -> ConfigError:
    return ConfigError(
        f"port {launch.port} of {launch.address} is used by another program, perhaps another run; set MASTER_PORT (torchrun and "
        "deepspeed: --master_port) to a free one."
    )
