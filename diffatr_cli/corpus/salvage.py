"""Reading a table that is known to be damaged, in a process of its own: LanceDB may end the process over it.

    python -m diffatr_cli.corpus.salvage PLACE NAME BYTES

That process writes all rows to stdout as an Arrow stream.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

import pyarrow as pa

from .place import Place, place_of

_MEMORY = 32 << 30  # bytes that reading may take besides what the table's size asks for
_SECONDS = 60.0
_BYTES_A_SECOND = 5e6


def salvage(place: Place, name: str) -> pa.Table | None:
    """The rows of a table as far as LanceDB gives them, be they right or wrong; None where it gives none."""
    size = place.size(name)
    command = [sys.executable, "-m", __name__, place.address, name, str(size)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    timeout = _SECONDS + size / _BYTES_A_SECOND
    try:
        done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout)
        return pa.ipc.open_stream(done.stdout).read_all() if done.returncode == 0 else None
    except (OSError, subprocess.SubprocessError, pa.ArrowException):
        return None


def _main(address: str, name: str, size: int) -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        most = _MEMORY + 16 * size
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    table = place_of(address).connect().open_table(name).to_arrow()
    with pa.ipc.new_stream(sys.stdout.buffer, table.schema) as stream:
        stream.write_table(table)


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
