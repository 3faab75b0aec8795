"""Peak memory of a stream that reads 10 and 50 times its shuffle buffer. To reach: the peak at 50 times is at most 1.05 of that at 10 times.

Each size runs in a process of its own: open the dataset, fit the normalisation, deal two epochs with prefetch, from files of half a buffer each, so that both
sizes have more files than are kept open. Besides the peak resident set the table shows its growth over the process with everything imported and nothing
opened: a leak cannot hide behind the imports.

    python benchmarks/memory.py [buffer in rows, default 16384]
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hlt_train.data.card import load_card
from hlt_train.data.dataset import open_dataset
from hlt_train.data.normalise import fit_normalisation
from hlt_train.data.stream import Stream
from hlt_train.datasets.events import write_events
from hlt_train.report.table import table

TIMES = (10, 50)


def peak() -> float:
    """Peak resident set in MB. Not from getrusage: there a child starts with its parent's peak."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def child(pattern: str, buffer: int) -> None:
    """Read everything twice and print the peaks."""
    before = peak()
    card = load_card("toy_events")
    start = time.perf_counter()
    rows = 0
    with open_dataset(card, {sample: [pattern] for sample in card.samples}, cluster_entries=2048) as dataset:
        stream = Stream(dataset, "train", fit_normalisation(dataset), batch=1024, buffer=buffer)
        for epoch in range(2):
            for _, numbers in stream.epoch(epoch):
                rows += int((numbers >= 0).sum())
    print(json.dumps({"before": before, "peak": peak(), "rows": rows // 2, "seconds": time.perf_counter() - start}))


def main(buffer: int) -> None:
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for times in TIMES:
            for k in range(2 * times):  # 0.6 of the entries are in the training split
                write_events(Path(folder) / f"{times}_{k}.root", int(buffer / 2 / 0.6), k + 1)
            command = [sys.executable, __file__, "child", str(Path(folder) / f"{times}_*.root"), str(buffer)]
            found[times] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    rows = [
        [f"{times} x buffer", f["rows"], f"{f['before']:.1f}", f"{f['peak']:.1f}", f"{f['peak'] - f['before']:.1f}", f"{f['seconds']:.1f}"]
        for times, f in found.items()
    ]
    print(table(rows, ["input", "rows", "before, MB", "peak, MB", "growth, MB", "s"], title=f"buffer of {buffer:,} rows"))
    small, large = (found[times]["peak"] for times in TIMES)
    print(f"ratio {large / small:.3f} (to reach: 1.05)")


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(sys.argv[2], int(sys.argv[3]))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 16_384)
