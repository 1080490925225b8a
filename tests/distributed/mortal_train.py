"""`optdyn train` in a process that kills itself once the log has so many rows.

`python mortal_train.py VICTIM ROWS LOG OPTIONS…`: process number VICTIM, by SIGKILL.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

from optdyn.cli.main import main
from optdyn.distributed._processes import VARIABLES


def die_at(log: Path, rows: int) -> None:
    while not log.exists() or log.read_bytes().count(b"\n") < rows:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    victim, rows, log, *options = sys.argv[1:]
    if os.environ[VARIABLES["process_id"]] == victim:
        threading.Thread(target=die_at, args=(Path(log), int(rows)), daemon=True).start()
    sys.argv[1:] = ["train", "--distributed", *options]
    sys.exit(main())
