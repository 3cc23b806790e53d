"""Errors of Octavo's Python side. Each is a standard exception too, so callers need not import them."""

from __future__ import annotations

import difflib
import errno
import reprlib
from collections.abc import Iterable
from pathlib import Path


class OctavoError(Exception):
    """Base of every error that Octavo raises on purpose."""


class ConfigError(OctavoError, ValueError):
    """An option has a value that cannot work."""


class ModelError(OctavoError, ValueError):
    """A model folder is incomplete, malformed or of an architecture that is not supported."""


class WeightsError(ModelError):
    """A checkpoint file is malformed or its tensors do not match the model."""


class CapacityError(OctavoError, ValueError):
    """The memory given cannot hold what was asked for; the message states the number to change."""


def invalid(field: str, value: object, remedy: str) -> ConfigError:
    """Return the error for one option: what it is called, what it was, what to do instead."""
    return ConfigError(f"{field}={shown(value)} is not valid: {remedy}")


def shown(value: object) -> str:
    """A value as errors show it: a huge or deep one does not fill the log."""
    try:
        return _VALUES.repr(value)
    except ValueError:  # an integer of thousands of digits, which Python does not print
        return f"<{type(value).__name__}>"


_VALUES = reprlib.Repr()
_VALUES.maxstring = _VALUES.maxother = _VALUES.maxlong = 120


_REMEDIES = {
    errno.ENOENT: "check the path, or download it again",
    errno.EACCES: "change its permissions, or choose another place",
    errno.EPERM: "change its permissions, or choose another place",
    errno.EROFS: "choose a place that can be written",
    errno.EMFILE: "raise the limit of open files (ulimit -n), or close some",
    errno.ENFILE: "the system has too many open files: close some",
    errno.ENOMEM: "free some memory",
    errno.ENOSPC: "free some space, or choose another place",
    errno.EDQUOT: "free some space, or choose another place",
    errno.EIO: "the disk or its network failed: try again, or copy it to another one",
}


def file_failure(path: str | Path, error: OSError, doing: str = "read") -> str:
    """Say which file could not be read or written, why, and what to do."""
    remedy = _REMEDIES.get(error.errno or 0, "check the file and the disk that it is on")
    return f"{path} cannot be {doing}: {error.strerror or error}: {remedy}"


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """Return the choice that looks most like `name`, or None if none is close."""
    by_folded = {choice.casefold(): choice for choice in choices}
    found = difflib.get_close_matches(name.casefold(), list(by_folded), n=1, cutoff=0.6)
    return by_folded[found[0]] if found else None


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)`, or nothing when no choice is close."""
    found = nearest(name, choices)
    return f" (did you mean {found!r}?)" if found else ""
