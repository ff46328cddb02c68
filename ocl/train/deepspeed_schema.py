"""Keys and values that a JSON file of the DeepSpeed engine may hold, in deepspeed's own words; its `auto` is not offered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Union

from ocl.errors import ConfigError


@dataclass(frozen=True)
class Rule:
    """What one value must be, in words and as a test."""

    text: str
    holds: Callable[[Any], bool]


Schema = Mapping[str, Union[Rule, "Schema"]]


def _whole(least: int) -> Rule:
    def holds(value: Any) -> bool:  # JSON writers print large numbers as 5e8; true is a whole number to Python
        return type(value) in (int, float) and value >= least and value % 1 == 0

    return Rule(f"be a whole number of {least} or more", holds)


_SWITCH = Rule("be true or false", lambda value: isinstance(value, bool))
_NAMES = Rule("be a list of names", lambda value: isinstance(value, list) and all(isinstance(each, str) for each in value))
_FACTOR = Rule("be a positive number", lambda value: type(value) in (int, float) and 0 < value < float("inf"))
_OFFLOAD: Schema = {"device": Rule("be cpu or none; trained weights fit there", lambda value: value in ("none", "cpu")),
                    "pin_memory": _SWITCH}  # fmt: skip
_STAGE = Rule("be 0, 1, 2 or 3", lambda value: type(value) is int and 0 <= value <= 3)

ZERO: Schema = {
    "stage": _STAGE,
    "overlap_comm": _SWITCH,
    "contiguous_gradients": _SWITCH,
    "reduce_scatter": _SWITCH,
    "reduce_bucket_size": _whole(1),
    "allgather_partitions": _SWITCH,
    "allgather_bucket_size": _whole(2),
    "use_multi_rank_bucket_allreduce": _SWITCH,
    "round_robin_gradients": _SWITCH,
    "sub_group_size": _whole(1),
    "offload_optimizer": _OFFLOAD,
    "offload_param": _OFFLOAD,
    "stage3_prefetch_bucket_size": _whole(0),
    "stage3_param_persistence_threshold": _whole(0),
    "stage3_model_persistence_threshold": _whole(0),
    "stage3_max_live_parameters": _whole(0),
    "stage3_max_reuse_distance": _whole(0),
    "stage3_module_granularity_threshold": _whole(0),
    "stage3_use_all_reduce_for_fetch_params": _SWITCH,
    "zero_hpz_partition_size": _whole(1),
    "zero_quantized_weights": _SWITCH,
    "zero_quantized_nontrainable_weights": _SWITCH,
    "zero_quantized_gradients": _SWITCH,
}
FILE: Schema = {
    "zero_optimization": ZERO,
    "communication_data_type": Rule("be fp32, fp16 or bf16", lambda value: value in ("fp32", "fp16", "bf16")),
    "prescale_gradients": _SWITCH,
    "gradient_predivide_factor": _FACTOR,
    "comms_logger": {"enabled": _SWITCH, "verbose": _SWITCH, "prof_all": _SWITCH, "prof_ops": _NAMES, "debug": _SWITCH},
    "wall_clock_breakdown": _SWITCH,
    "memory_breakdown": _SWITCH,
    "timers": {"throughput": {"enabled": _SWITCH, "synchronized": _SWITCH}},
}


def check_keys(content: Any, name: str, schema: Schema = FILE, place: str = "") -> None:
    """Raises ConfigError at a key that is not offered or a value of another kind.

    name: the file, and place: where in it, for messages.
    """
    if not isinstance(content, Mapping):
        raise ConfigError(f"{name}: {place or 'the file'} must hold keys and values, got {content!r}; leave it out, or see "
                          "configs/deepspeed.")  # fmt: skip
    for key, value in content.items():
        where = f"{place}.{key}" if place else key
        rule = schema.get(key)
        if rule is None:
            raise ConfigError(f"{name}: {where} is not offered; leave it out, or use one of {', '.join(schema)}.")
        if not isinstance(rule, Rule):
            check_keys(value, name, rule, where)
        elif not rule.holds(value):
            raise ConfigError(f"{name}: {where} must {rule.text}, got {value!r}; correct it, or leave it out.")
