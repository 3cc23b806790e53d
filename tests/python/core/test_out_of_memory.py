"""A process that may not have more memory: errors that say for what, and an engine made after them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import numpy as np
from octavo import core

def config(**more):
    return core.EngineConfig(**{"num_blocks": 70_000, "block_size": 16, "max_model_len": 1 << 20,
                                "vocab_size": 50, "max_num_seqs": 4, **more})

pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + (256 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

def refused(call, *arguments):
    try:
        call(*arguments)
    except MemoryError as error:
        print(error)
    else:
        print("there was memory")

refused(core.Engine, config(max_num_seqs=4096))
refused(core.Engine, config(num_blocks=100_000_000))
engine = core.Engine(config())
pool = np.zeros(1 << 20, np.uint8)  # nothing is evicted, so nothing is read from it
refused(engine.add_host_tier, pool.ctypes.data, 1 << 16, 1 << 30)
engine.add_host_tier(pool.ctypes.data, 1 << 16, 1 << 20)
params = core.SamplingParams()
params.max_tokens, params.temperature = 1, 0.0
engine.add_request(np.arange(5, dtype=np.int32), params)
plan = engine.begin_step()
print(len(engine.finish_step(plan.step_id, np.array([7], np.int32))), engine.has_unfinished())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="its allocator ends the process")
def test_an_engine_without_memory_says_for_what_and_a_smaller_one_is_made() -> None:
    command = [sys.executable, "-c", PROGRAM]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    lines = result.stdout.splitlines()
    assert result.returncode == 0, result.stderr
    tables = 4096 * (1 << 16) * 4
    assert lines[0] == (
        f"no memory for the block tables ({tables} bytes): lower max_num_seqs or max_model_len, "
        "or free some memory"
    )
    assert lines[1].startswith("no memory for the block pool (")
    assert lines[1].endswith(": lower num_blocks, or free some memory")
    assert lines[2] == "no memory for a host tier (1073741824 bytes): give it less"
    assert lines[3] == "1 False"
