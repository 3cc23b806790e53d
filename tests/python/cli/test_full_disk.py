"""Results that cannot be written: the file and the remedy are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from octavo.cli.main import main
from octavo.errors import OctavoError
from octavo.simulate.cost import write_table

FULL = "/dev/full"  # every write to it finds the disk full

pytestmark = pytest.mark.skipif(not Path(FULL).exists(), reason="this system has no /dev/full")


def test_a_report_on_a_full_disk_is_named_with_a_remedy(
    config_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["simulate", str(config_folder), "--num-requests", "3", "--device", "h200"]
    assert main([*arguments, "--json", FULL]) == 1
    said = capsys.readouterr().err
    assert f"{FULL} cannot be written: No space left on device: free some space" in said
    assert main([*arguments, "--json", str(config_folder / "report.json")]) == 0


def test_a_cost_model_on_a_full_disk_is_named_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(OctavoError, match=r"/dev/full cannot be written.*free some space"):
        write_table(FULL, {"rows": [1]})
    with pytest.raises(OctavoError, match=r"nowhere/t\.json cannot be written.*check the path"):
        write_table(str(tmp_path / "nowhere" / "t.json"), {"rows": [1]})
