"""Reading a table that is known to be damaged, in a process of its own: LanceDB may end the process over it.

    python -m diffatr_cli.corpus.salvage FOLDER NAME

That process writes all rows to stdout as an Arrow stream.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa

_MEMORY = 32 << 30  # bytes that reading may take besides what the table's size asks for
_SECONDS = 60.0
_BYTES_A_SECOND = 5e6


def salvage(folder: Path, name: str) -> pa.Table | None:
    """The rows of a table as far as LanceDB gives them, be they right or wrong; None where it gives none."""
    command = [sys.executable, "-m", __name__, os.fspath(folder.absolute()), name]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    timeout = _SECONDS + _size(folder / f"{name}.lance") / _BYTES_A_SECOND
    try:
        done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout)
        return pa.ipc.open_stream(done.stdout).read_all() if done.returncode == 0 else None
    except (OSError, subprocess.SubprocessError, pa.ArrowException):
        return None


def _size(table: Path) -> int:
    return sum(path.stat().st_size for path in table.rglob("*") if path.is_file())


def _main(folder: Path, name: str) -> None:
    import lancedb

    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        most = _MEMORY + 16 * _size(folder / f"{name}.lance")
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    table = lancedb.connect(folder).open_table(name).to_arrow()
    with pa.ipc.new_stream(sys.stdout.buffer, table.schema) as stream:
        stream.write_table(table)


if __name__ == "__main__":
    _main(Path(sys.argv[1]), sys.argv[2])
