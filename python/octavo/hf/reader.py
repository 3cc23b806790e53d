"""JSON files of a model folder, and typed access to what stands in them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from octavo.errors import ModelError, file_failure, shown

MAX_JSON_BYTES = 16 << 20
MAX_DIM = 1 << 24  # of any one dimension: far above every known model, far below what could overflow
MAX_LENGTH = (1 << 31) - 1  # of anything counted in tokens
MAX_NUMBER = 1e30  # of any other number, which kernels take as float32; 1 / MAX_NUMBER is the least


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file, None if there is no file. Raises ModelError for anything else."""
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise ModelError(f"{path} has {size} bytes: at most {MAX_JSON_BYTES} are read")
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON ({error}): download it again") from None
    except OSError as error:
        raise ModelError(file_failure(path, error)) from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds a JSON {type(value).__name__} where an object is expected")
    return value


class Reader:
    """Typed access to a JSON object.

    A missing key takes the architecture's default first; null takes the caller's, as transformers has it.
    """

    def __init__(self, raw: Mapping[str, Any], path: Path, defaults: Mapping[str, Any] | None = None) -> None:
        self.raw = raw
        self.path = path
        self._defaults = defaults or {}

    def error(self, key: str, value: object, remedy: str) -> ModelError:
        return ModelError(f"{self.path}: {key}={shown(value)} is not valid: {remedy}")

    def get(self, key: str, default: Any = None) -> Any:
        value = self.raw.get(key, self._defaults.get(key))
        return default if value is None else value

    def integer(self, key: str, default: int | None = None, low: int = 1, high: int = MAX_DIM) -> int:
        value = self.get(key, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.error(key, value, f"an integer from {low} to {high} is expected")
        return value

    def number(self, key: str, default: float | None = None, low: float = 0.0) -> float:
        value = self.get(key, default)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        # Written so that NaN fails; a comparison, unlike float(), takes an integer of any size.
        if not is_number or not 1 / MAX_NUMBER <= value <= MAX_NUMBER or value <= low:
            raise self.error(key, value, f"a finite number above {low:g} is expected, at most {MAX_NUMBER:g}")
        return float(value)

    def optional_number(self, key: str) -> float | None:
        return None if self.get(key) is None else self.number(key)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.error(key, value, "true or false is expected")
        return value
