"""The wheel: everything in it, nothing beside it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_wheel_holds_the_package_and_only_it(tmp_path: Path) -> None:
    copy = tmp_path / "source"
    copy.mkdir()
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in listed:
        if (ROOT / name).is_file():
            target = copy / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(copy)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names} == {"hlt_train", wheel.name.split("-py3")[0] + ".dist-info"}
    expected = {f"hlt_train/{p.relative_to(ROOT / 'hlt_train')}" for p in (ROOT / "hlt_train").rglob("*.py")}
    expected |= {f"hlt_train/{folder}/{p.name}" for folder in ("cli", "datasets") for p in (ROOT / folder).glob("*.py")}
    expected |= {f"hlt_train/datasets/{p.name}" for p in (ROOT / "datasets").glob("*.yaml")} | {"hlt_train/py.typed"}
    expected |= {f"hlt_train/exporters/templates/{p.name}" for p in (ROOT / "hlt_train" / "exporters" / "templates").glob("*")}
    expected = {name for name in expected if "__pycache__" not in name}
    assert expected <= set(names)
