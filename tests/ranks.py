"""The jobs of a file by processes, as a command that a test can signal or kill: `python tests/ranks.py FILE RANKS [ft]`. Imports nothing heavy."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from hlt_train.transports.launch import launch


def main() -> int:
    ended = launch([str(Path(__file__).with_name("processes.py")), sys.argv[1]], int(sys.argv[2]), fault_tolerant="ft" in sys.argv, nproc=2)
    print(json.dumps({"errors": ended.errors, "killed": ended.killed, "first": ended.first}), flush=True)
    return ended.code


if __name__ == "__main__":
    sys.exit(main())
