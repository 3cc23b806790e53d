"""The code blocks of docs/guides/drive-the-core.md run, in order, as one program."""

from __future__ import annotations

import re
from pathlib import Path

GUIDE = Path(__file__).parents[3] / "docs" / "guides" / "drive-the-core.md"


def test_the_guide_s_code_runs() -> None:
    blocks = list(re.finditer(r"^```python\n(.*?)^```", GUIDE.read_text(), re.M | re.S))
    assert len(blocks) > 8
    names: dict[str, object] = {}
    for block in blocks:
        line = GUIDE.read_text()[: block.start()].count("\n") + 1
        # Blank lines in front, so that a traceback names the guide's own line.
        exec(compile("\n" * line + block.group(1), str(GUIDE), "exec"), names)
