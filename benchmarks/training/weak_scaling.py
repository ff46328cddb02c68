"""Weak scaling: images/s of `ocl train` on N processes against one, each with the same number of images. Nothing else must run.

    python benchmarks/training/weak_scaling.py [--config FILE] [--processes 2] [--per_process 32] [--stage 2] [--quick] [--out FILE]

The local engine, DeepSpeed on one process and DeepSpeed on N take turns. Efficiency is rate(N) / (N * rate(1)), both DeepSpeed's;
`local` over `one` is what the engine itself costs. First it is checked that one process and N reach the same losses on the same
batch.
Words after `--` are overrides for `ocl train`, such as `-- --device cuda --model.weights FOLDER`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs/slot_attention/scenes_cpu.yaml"
FEW = ["--data.dataset.size", "2048"]  # scenes are drawn before every run
SKIPPED = 3  # log lines: the first updates compile, allocate and fill caches
TOLERANCE = 1e-4


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--config", type=Path, default=CONFIG)
    options.add_argument("--processes", type=int, default=2)
    options.add_argument("--per_process", type=int, default=32, help="images per process and update")
    options.add_argument("--stage", type=int, default=2, choices=range(4))
    options.add_argument("--quick", action="store_true", help="fewer updates, one turn")
    options.add_argument("--out", type=Path)
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    known, overrides = options.parse_args(words[:cut]), words[cut + 1 :]
    engine = ["--engine", "DeepSpeed", "--engine.config", str(ROOT / f"configs/deepspeed/zero{known.stage}.json")]
    steps, turns = (12, 1) if known.quick else (60, 3)
    few = FEW if known.config == CONFIG else []
    base = ["train", "--config", str(known.config), *few, *overrides, "--training.log_every", "1", "--training.eval_every", "0"]

    def losses_and_rates(size: int, batch: int, steps: int, local: bool = False) -> tuple[list[float], list[float]]:
        sizes = ["--training.batch_size", str(batch), "--training.steps", str(steps), "--training.checkpoint_every", str(steps)]
        with tempfile.TemporaryDirectory() as folder:
            command = [*base, *sizes, "--run", folder + "/run", *([] if local else engine)]
            launcher = [] if local else ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(size)]
            module = ["-m", "ocl.cli.main"] if local else ["-m", "--", "ocl.cli.main"]
            threads = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
            subprocess.run([sys.executable, *launcher, *module, *command], env={**os.environ, **threads}, check=True,
                           stdout=subprocess.DEVNULL)  # fmt: skip
            lines = [json.loads(line) for line in (Path(folder) / "run/log.jsonl").read_text().splitlines()]
        return [line["loss"] for line in lines], [line["samples_per_second"] for line in lines[SKIPPED:]]

    total = known.per_process * known.processes
    alone, together = (losses_and_rates(size, total, SKIPPED)[0] for size in (1, known.processes))
    if any(abs(ours - theirs) > TOLERANCE * abs(theirs) for ours, theirs in zip(together, alone, strict=True)):
        raise SystemExit(f"{known.processes} processes reach other losses than one, {together} and {alone}; no speed is reported.")
    rates: dict[str, list[float]] = {"local": [], "one": [], "many": []}
    for _ in range(turns):
        rates["local"] += losses_and_rates(1, known.per_process, steps, local=True)[1]
        rates["one"] += losses_and_rates(1, known.per_process, steps)[1]
        rates["many"] += losses_and_rates(known.processes, total, steps)[1]
    found = {name: statistics.median(values) for name, values in rates.items()}
    row = {"processes": known.processes, "per_process": known.per_process, "stage": known.stage, "config": known.config.name,
           **found, "efficiency": found["many"] / (known.processes * found["one"])}  # fmt: skip
    print("images/s: local {local:.1f}, DeepSpeed on one process {one:.1f}, on {processes} {many:.1f}; efficiency {efficiency:.2f}"
          .format(**row))  # fmt: skip
    if known.out:
        known.out.write_text(json.dumps({"benchmark": "weak_scaling", "rows": [row]}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
