"""Environment variables. Octavo reads them here and nowhere else; an option given in code wins over each."""

from __future__ import annotations

import os

from octavo.errors import invalid

NUM_THREADS = "OCTAVO_NUM_THREADS"  # threads of a step on the CPU; see DeviceConfig.num_threads
HASH_SEED = "PYTHONHASHSEED"  # what names of cached blocks start from, as in vLLM; see octavo.kv_events.names
LOG_LEVEL = "OCTAVO_LOG_LEVEL"  # debug, info, warning or error; see LogConfig.level

LOG_LEVELS = ("debug", "info", "warning", "error")


def num_threads() -> int | None:
    """Return the number of threads asked for, or None. Raises ValueError unless it is a positive integer."""
    text = os.environ.get(NUM_THREADS, "").strip()
    if not text:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise invalid(NUM_THREADS, text, "use a positive integer, or unset it to use every core")
    return int(text)


def hash_seed() -> str | None:
    """Return what PYTHONHASHSEED says, or None. Any text will do."""
    return os.environ.get(HASH_SEED)


def log_level() -> str | None:
    """Return the log level asked for, or None. Raises ValueError if it is not one of LOG_LEVELS."""
    text = os.environ.get(LOG_LEVEL, "").strip().lower()
    if not text:
        return None
    if text not in LOG_LEVELS:
        raise invalid(LOG_LEVEL, text, f"use one of {', '.join(LOG_LEVELS)}")
    return text
