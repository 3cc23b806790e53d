"""Names of a checkpoint's tensors where they differ from the model's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class TextTower:
    """A text model that shares its checkpoint with others, such as the encoder of its images.

    Its config.json keeps the text model's values in `text_config`. `prefixes` are every spelling in use of
    the text model's names, and what each stands for; `others` begin the names of what is not loaded.
    """

    prefixes: Mapping[str, str] = field(default_factory=dict)
    others: tuple[str, ...] = ()

    def name_of(self, stored: str) -> str | None:
        """Return the model's name of a stored tensor; None for one of another tower."""
        if stored.startswith(self.others):
            return None
        for old, new in self.prefixes.items():
            if stored.startswith(old):
                return new + stored[len(old) :]
        return stored
