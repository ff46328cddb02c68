"""What a launcher must say, what a JSON file may say, and that everything wrong is told before a weight is loaded."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ocl.cli.main import main
from ocl.errors import ConfigError
from ocl.train import DeepSpeed, Local, Training, deepspeed_config, deepspeed_schema
from ocl.train.launch import Launch, read_launcher
from ocl.train.setup import Place
from ocl.train.world import World

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "node0", "MASTER_PORT": "29500"}
SLURM = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1",
         "SLURM_JOB_ID": "123456"}  # fmt: skip
CONFIGS = sorted((ROOT / "configs/deepspeed").glob("*.json"))


def test_torchrun_and_deepspeed_say_who_a_process_is():
    assert read_launcher(TORCHRUN) == Launch(1, 4, 1, "node0", 29500)


def test_slurm_says_it_in_its_own_words():
    assert read_launcher(SLURM) == Launch(5, 8, 1, "10.0.0.1", 29500 + 3456)
    assert read_launcher({**SLURM, "MASTER_ADDR": "head", "MASTER_PORT": "1234"}) == Launch(5, 8, 1, "head", 1234)


@pytest.mark.parametrize("name", TORCHRUN)
def test_an_absent_variable_is_named(name):
    with pytest.raises(ConfigError, match=f"needs the variables of a launcher, {name} not set; start with `torchrun"):
        read_launcher({key: value for key, value in TORCHRUN.items() if key != name})


def test_without_a_launcher_all_are_named():
    with pytest.raises(ConfigError, match="RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT not set"):
        read_launcher({})


@pytest.mark.parametrize("change", [{"RANK": "4"}, {"RANK": "-1"}, {"MASTER_PORT": "0"}, {"WORLD_SIZE": "two"}])
def test_variables_that_make_no_sense_are_refused(change):
    with pytest.raises(ConfigError, match="the launcher's variables"):
        read_launcher({**TORCHRUN, **change})


def test_several_processes_with_the_local_engine_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="2 processes were started, but engine Local is one; pass --engine DeepSpeed"):
        Local().start(Training(), None)


def test_several_tasks_of_srun_with_the_local_engine_are_refused(ocl_train):
    error = ocl_train(**SLURM, SLURM_STEP_NUM_TASKS="8")
    assert "8 processes were started, but engine Local is one; pass --engine DeepSpeed, or start one (srun --ntasks 1)" in error


def test_one_process_in_an_allocation_for_many_is_one_process(monkeypatch):
    for name, value in {**SLURM, "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}.items():
        monkeypatch.setenv(name, value)
    assert Local().start(Training(), torch.device("cpu")) == Place(World(), torch.device("cpu"))


# the JSON file


def check(zero=None, *, device="cpu", size=2, more=None, **training):
    config = {"zero_optimization": zero or {}, **(more or {})}
    deepspeed_config.check(config, Training(**{"batch_size": 4, **training}), device=device, size=size, name="my.json")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(batch_size=5), "training.batch_size=5 cannot be divided among 2 processes; choose a multiple of 2"),
        (dict(batch_size=6, size=4, accumulate=2), r"batch_size x accumulate = 12 images"),
        (dict(zero={"stage": 2, "offload_param": {"device": "cpu"}}), "offload_param needs zero_optimization.stage 3, got stage 2"),
        (dict(zero={"stage": 0, "offload_optimizer": {"device": "cpu"}}), "offload_optimizer needs zero_optimization.stage 1"),
        (dict(zero={"stage": 3, "zero_quantized_weights": True}, precision="bf16"), r"\(ZeRO\+\+\) needs CUDA devices"),
        (dict(zero={"stage": 3, "zero_quantized_weights": True}, device="cuda"), "which fp32 forbids"),
        (dict(zero={"stage": 1, "zero_quantized_weights": True}, device="cuda", precision="bf16"), "needs zero_optimiz.* 3"),
        (dict(zero={"stage": 3, "zero_hpz_partition_size": 3}), "must divide the number of processes, 2, got 3"),
        (dict(zero={"stage": 1, "zero_hpz_partition_size": 2}), "zero_hpz_partition_size needs zero_optimization.stage 3"),
        (dict(more={"communication_data_type": "fp16"}), "communication_data_type=fp16 does not go with training.precision=fp32"),
        (dict(zero={"stage": 3}, compile=True), "set training.compile=false, or use stage 2"),
    ],
)  # fmt: skip
def test_combinations_that_cannot_work_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        check(**given)


IN_ZERO = [
    ('"stage": 4', "stage must be 0, 1, 2 or 3, got 4"),
    ('"stage": true', "stage must be 0, 1, 2 or 3, got True"),
    ('"typo": 1', "typo is not offered; leave it out, or use one of stage, overlap_comm"),
    ('"mics_shard_size": 2', "mics_shard_size is not offered"),
    ('"zenflow": {}', "zenflow is not offered"),
    ('"overlap_comm": "perhaps"', "overlap_comm must be true or false, got 'perhaps'; correct it, or leave it out"),
    ('"reduce_bucket_size": -1', "reduce_bucket_size must be a whole number of 1 or more, got -1"),
    ('"reduce_bucket_size": "auto"', "reduce_bucket_size must be a whole number of 1 or more, got 'auto'"),
    ('"zero_hpz_partition_size": 1.5', "zero_hpz_partition_size must be a whole number of 1 or more, got 1.5"),
    ('"offload_optimizer": true', "offload_optimizer must hold keys and values, got True"),
    ('"offload_param": {"device": "nvme"}', "offload_param.device must be cpu or none; trained weights fit there, got 'nvme'"),
    ('"offload_param": {"pin_memory": "yes"}', "offload_param.pin_memory must be true or false, got 'yes'"),
]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"train_batch_size": 8}', "belongs to the experiment, not to the engine; set training.batch_size"),
        ('{"bf16": {"enabled": true}}', "set training.precision=bf16"),
        ('{"optimizer": {"type": "Adam"}}', "set training.optimizer"),
        ('{"activation_checkpointing": {}}', "checkpointing=true of the denoiser"),
        ('{"zero_optimisation": {}}', r"my\.json: zero_optimisation is not offered; leave it out, or use one of zero_optimization"),
        ('{"zero_optimization": 2}', r"my\.json: zero_optimization must hold keys and values, got 2"),
        ('{"zero_optimization": null}', "zero_optimization must hold keys and values, got None"),
        ('{"comms_logger": 5}', "comms_logger must hold keys and values, got 5"),
        ('{"comms_logger": {"prof_ops": "all"}}', "comms_logger.prof_ops must be a list of names, got 'all'"),
        ('{"timers": {"throughput": {"enabled": 1}}}', "timers.throughput.enabled must be true or false, got 1"),
        ('{"gradient_predivide_factor": 0}', "gradient_predivide_factor must be a positive number, got 0"),
        ('{"communication_data_type": "int8"}', "communication_data_type must be fp32, fp16 or bf16, got 'int8'"),
        *((f'{{"zero_optimization": {{"stage": 3, {text}}}}}', f"zero_optimization.{message}") for text, message in IN_ZERO),
        ("[]", "must hold keys and values, got list"),
        ("{", "is not JSON"),
    ],
)
def test_files_that_say_what_they_must_not_are_refused(tmp_path, text, message):
    path = tmp_path / "my.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        deepspeed_config.read(path)


def test_sizes_may_be_written_as_json_writers_write_them(tmp_path):
    path = tmp_path / "my.json"
    path.write_text('{"zero_optimization": {"stage": 2, "reduce_bucket_size": 5e8}, "timers": {"throughput": {"enabled": false}}}')
    assert deepspeed_config.read(path)["zero_optimization"]["reduce_bucket_size"] == 500_000_000


def test_every_offered_option_is_one_that_deepspeed_takes(needs_deepspeed):
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    known = {field.alias or name for name, field in DeepSpeedZeroConfig.model_fields.items()}
    assert known >= deepspeed_schema.ZERO.keys()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.json cannot be read: No such file"):
        deepspeed_config.read(tmp_path / "none.json")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_file_fits_the_hardware_it_is_for(path):
    device = "cuda" if "quantised" in path.stem else "cpu"
    deepspeed_config.check(deepspeed_config.read(path), Training(precision="bf16"), device=device, size=8, name=path.name)


@pytest.mark.parametrize(
    ("trained", "bucket"), [([100, 20, 30, 250], 250), ([10] * 40, 100), ([10**9] * 8, 500_000_000), ([1], 1)]
)
def test_buffers_are_no_larger_than_what_is_trained_needs(trained, bucket):
    def completed(zero):
        return deepspeed_config.complete({"zero_optimization": zero}, Training(), size=1, trained=trained)["zero_optimization"]

    assert completed({"stage": 2})["reduce_bucket_size"] == bucket
    assert completed({"stage": 2, "reduce_bucket_size": 7})["reduce_bucket_size"] == 7
    assert completed({"stage": 3})["stage3_prefetch_bucket_size"] == completed({"stage": 3})["stage3_max_live_parameters"] == bucket
    assert completed({"stage": 3, "stage3_max_live_parameters": 7})["stage3_max_live_parameters"] == 7


def test_the_docs_explain_every_shipped_file():
    text = (ROOT / "docs/scale.md").read_text()
    assert len(CONFIGS) >= 6
    assert [path.name for path in CONFIGS if f"`{path.name}`" not in text] == []


# before a weight is loaded

NOWHERE = """
model: {class_path: coda, init_args: {weights: /nowhere/weights}}
losses:
  - class_path: Reconstruction
  - {class_path: ContrastiveAlignment, init_args: {weight: 0.05, warmup_steps: 2, pairing: PAIRING}}
data: {class_path: Scenes, init_args: {image_size: 64}}
training: {steps: 4, batch_size: BATCH}
"""


@pytest.fixture
def ocl_train(tmp_path, monkeypatch, capsys):
    """`ocl train` with weights that do not exist, so that any error about something else came before they were looked for."""

    def run(*words, batch=4, pairing="halves", **variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        path = tmp_path / "config.yaml"
        path.write_text(NOWHERE.replace("BATCH", str(batch)).replace("PAIRING", pairing))
        assert main(["train", "--config", str(path), "--run", str(tmp_path / "run"), "--device", "cpu", *words]) == 2
        assert not (tmp_path / "run").exists()
        return capsys.readouterr().err

    return run


def test_no_launcher(ocl_train):
    assert "needs the variables of a launcher" in ocl_train("--engine", "DeepSpeed")


def test_a_batch_that_cannot_be_divided(ocl_train):
    assert "cannot be divided among 4 processes" in ocl_train("--engine", "DeepSpeed", batch=6, **TORCHRUN)


def test_a_combination_that_cannot_work(ocl_train, tmp_path):
    path = tmp_path / "zero.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 1, "offload_param": {"device": "cpu"}}}))
    assert "zero.json: offload_param needs" in ocl_train("--engine", "DeepSpeed", "--engine.config", str(path), **TORCHRUN)


@pytest.mark.parametrize("zero", [2, None, {"offload_optimizer": True}, {"stage": 2, "overlap_comm": "perhaps"}])
def test_a_file_of_the_wrong_kind(ocl_train, tmp_path, zero):
    path = tmp_path / "zero.json"
    path.write_text(json.dumps({"zero_optimization": zero}))
    found = ocl_train("--engine", "DeepSpeed", "--engine.config", str(path), **TORCHRUN)
    assert f"ConfigError: {path}: zero_optimization" in found


def test_deepspeed_that_is_not_installed(ocl_train, monkeypatch):
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    assert 'need deepspeed; run: pip install "ocl[deepspeed]"' in ocl_train("--engine", "DeepSpeed", **TORCHRUN)


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_service_that_is_not_installed(ocl_train, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    found = ocl_train("--training.track", f"[{name}]")
    assert f'training.track=[{name}] need {name}; run: pip install "ocl[{name}]"' in found


def test_weights_to_start_from_that_are_not_there(ocl_train):
    found = ocl_train("--training.start_from", "runs/none/model.safetensors")
    assert "ConfigError: training.start_from=runs/none/model.safetensors is not a file; " in found


def test_an_engine_option_that_does_not_exist(ocl_train):
    assert "ConfigError" in ocl_train("--engine", "DeepSpeed", "--engine.stage", "2")


def test_a_timeout_that_makes_no_sense():
    with pytest.raises(ConfigError, match=r"engine\.timeout must be positive"):
        DeepSpeed(timeout=0)


SCRIPT = """
import os, socket, sys
taken = socket.socket(); taken.bind(("", 0)); taken.listen()
os.environ |= {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
os.environ["MASTER_PORT"] = str(taken.getsockname()[1])
from ocl.cli.main import main
words = ["train", "--config", sys.argv[1], "--run", sys.argv[2], "--device", "cpu", "--engine", "DeepSpeed"]
assert main(words) == 2
free = socket.socket(); free.bind(("", 0)); os.environ["MASTER_PORT"] = str(free.getsockname()[1]); free.close()
assert main([*words, "--engine.timeout", "1"]) == 2
"""


def test_a_port_in_use_and_a_process_that_never_comes(needs_deepspeed, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(NOWHERE.replace("BATCH", "4").replace("PAIRING", "halves"))
    command = [sys.executable, "-c", SCRIPT, str(path), str(tmp_path / "run")]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "is used by another program, perhaps another run; set MASTER_PORT" in done.stderr
    assert "ProcessError: process 0 of 2 could not meet the others" in done.stderr
    assert "(process 1 did not come in 1 s)" in done.stderr
    assert "/nowhere" not in done.stderr and not (tmp_path / "run").exists()
