"""Keyword arguments of `LLM`: the configuration's, its own two, and those of vLLM that change nothing."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypedDict

from octavo import config
from octavo.errors import did_you_mean, invalid

if TYPE_CHECKING:
    from typing_extensions import Unpack as Unpack


class LLMOptions(TypedDict, total=False):
    """What `octavo.LLM` takes besides the model; meaning and defaults stand in octavo/config.py."""

    tokenizer: str | os.PathLike[str] | None
    tokenizer_mode: str
    dtype: str
    quantization: str | None
    max_model_len: int | str | None
    seed: int
    load_format: str
    block_size: int | None
    kv_cache_dtype: str
    enable_prefix_caching: bool
    mamba_cache_interval: int
    gpu_memory_utilization: float | None
    kv_cache_memory_bytes: int | str | None
    sub_block_hits: bool
    num_gpu_blocks_override: int | None
    kv_offloading_size: float | None
    kv_events_config: Mapping[str, Any] | None
    prefix_caching_hash_algo: str
    max_num_seqs: int | None
    max_num_batched_tokens: int | None
    enable_chunked_prefill: bool
    long_prefill_token_threshold: int
    scheduling_policy: str
    priority_aging_ms: int
    victim: str
    watermark: float
    full_prompt_gate: bool
    max_overtakes: int
    speculative_config: Mapping[str, Any] | None
    device: str
    enforce_eager: bool
    batch_invariant: bool
    num_threads: int | None
    disable_log_stats: bool
    level: str | None
    # Not of the configuration: the engine's own.
    max_logprobs: int
    skip_tokenizer_init: bool


OWN = ("max_logprobs", "skip_tokenizer_init")
# vLLM's keywords that tune what Octavo does not have or always does: accepted, with one warning.
INERT = frozenset(
    (
        "disable_custom_all_reduce swap_space cpu_offload_gb max_seq_len_to_capture "
        "compilation_config async_scheduling distributed_executor_backend disable_cascade_attn "
        "max_parallel_loading_workers calculate_kv_scales enable_log_requests use_tqdm_on_load "
        "disable_hybrid_kv_cache_manager disable_sliding_window generation_config optimization_level"
    ).split()
)
# vLLM's keywords that would change the result or the machine used; only these values are what Octavo does.
SUPPORTED_VALUES: dict[str, tuple[object, ...]] = {
    "tensor_parallel_size": (1,),
    "pipeline_parallel_size": (1,),
    "data_parallel_size": (1,),
    "enable_lora": (False, None),
    "kv_transfer_config": (None,),
    "hf_overrides": (None, {}),
    "trust_remote_code": (False, True),  # code of a model's folder is never run, allowed or not
    "revision": (None,),
    "tokenizer_revision": (None,),
    "download_dir": (None,),
    "runner": ("auto", "generate"),
    "task": ("auto", "generate", None),
    "enable_prompt_embeds": (False, None),
}
_warned: set[str] = set()


def split_options(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(options of the configuration, the engine's own).

    Raises TypeError for an unknown name, with the nearest known one; ValueError for a value that Octavo
    cannot honour. What has no effect is left out, with one warning for each name.
    """
    known = [name for name in config.option_names() if name != "model"]
    configured: dict[str, Any] = {}
    own: dict[str, Any] = {}
    for name, value in options.items():
        if name in known:
            configured[name] = value
        elif name in OWN:
            own[name] = value
        elif name in INERT or name in SUPPORTED_VALUES:
            _check_foreign(name, value)
        else:
            hint = did_you_mean(name, [*known, *OWN])
            raise TypeError(f"LLM has no option {name!r}{hint}")
    if not isinstance(own.get("skip_tokenizer_init", False), bool):
        raise invalid("skip_tokenizer_init", own["skip_tokenizer_init"], "use True or False")
    most = own.get("max_logprobs", 0)
    if isinstance(most, bool) or not isinstance(most, int) or most < -1:
        raise invalid("max_logprobs", most, "use a number, or -1 for no limit")
    return configured, own


def _check_foreign(name: str, value: Any) -> None:
    if name in SUPPORTED_VALUES and value not in SUPPORTED_VALUES[name]:
        supported = " or ".join(repr(item) for item in SUPPORTED_VALUES[name])
        raise invalid(name, value, f"Octavo supports {supported}; leave it out")
    if name not in _warned:
        _warned.add(name)
        warnings.warn(f"{name} is accepted for vLLM's sake and has no effect in Octavo", stacklevel=4)
