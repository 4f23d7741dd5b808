"""Downloads against a local server with every bad habit, unpacking, and Clotho from its archives."""

from __future__ import annotations

import contextlib
import hashlib
import io
import random
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from audio_files import table, tone

from diffatr_cli.data import download as module
from diffatr_cli.data.clotho import prepare_clotho
from diffatr_cli.data.download import download, unpack_7z
from diffatr_cli.data.manifest import load_dataset
from diffatr_cli.errors import DiffATRError

py7zr = pytest.importorskip("py7zr")
pytest.importorskip("httpx")

CONTENT = np.random.default_rng(0).bytes(300_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server:
    """Serves `files`; `cuts` are the bytes after which the next answers break off, `errors` the next status codes."""

    def __init__(self) -> None:
        self.files = {"a.bin": CONTENT}
        self.ranges = True
        self.cuts: list[int] = []
        self.errors: list[int] = []
        self.redirects: dict[str, str] = {}
        self.lengths = True
        self.extra = b""  # sent behind the file, and announced where lengths are
        self.asked: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append(self.headers.get("Range", "all") + " " + self.path)
                if server.errors:
                    self.send_error(server.errors.pop(0))
                    return
                name = unquote(urlsplit(self.path).path)[1:]
                if name in server.redirects:
                    self.send_response(302)
                    self.send_header("Location", server.redirects[name])
                    self.end_headers()
                    return
                content = server.files.get(name)
                if content is None:
                    self.send_error(404)
                    return
                size, start = len(content), 0
                if server.ranges and "Range" in self.headers:
                    start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
                    if start >= size:
                        self.send_error(416)
                        return
                    self.send_response(206)
                    self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
                else:
                    self.send_response(200)
                if server.lengths:
                    self.send_header("Content-Length", str(size - start + len(server.extra)))
                self.end_headers()
                until = start + server.cuts.pop(0) if server.cuts else size
                with contextlib.suppress(OSError):  # who has heard enough hangs up
                    self.wfile.write(content[start:until] + (server.extra if until == size else b""))

            def log_message(self, *args: object) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.http.shutdown()


def fetch(server: Server, target: Path, name: str = "a.bin", **options: object) -> list[float]:
    """Download; returns the pauses made."""
    pauses: list[float] = []
    download(f"{server.address}/{name}", target, **{"md5": MD5, "size": len(CONTENT), "pause": pauses.append, **options})  # type: ignore[arg-type]
    return pauses


def test_a_download_arrives_whole_and_is_not_made_twice(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    assert fetch(server, tmp_path / "new" / "a.bin", progress=lambda *now: seen.append(now)) == []
    assert (tmp_path / "new" / "a.bin").read_bytes() == CONTENT
    assert (len(CONTENT), len(CONTENT), "downloading a.bin") in seen
    fetch(server, tmp_path / "new" / "a.bin")
    assert len(server.asked) == 1
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.bin"]


def test_a_connection_that_breaks_is_taken_up_where_it_broke(server: Server, tmp_path: Path) -> None:
    server.cuts = [100_000, 0, 0, 50_000]
    pauses = fetch(server, tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert [asked.split()[0] for asked in server.asked] == ["all", *["bytes=100000-"] * 3, "bytes=150000-"]
    assert pauses == [1, 1, 2, 1]


def test_a_run_that_was_killed_is_taken_up_by_the_next(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.bin.part").write_bytes(CONTENT[:70_000])
    fetch(server, tmp_path / "a.bin")
    assert [asked.split()[0] for asked in server.asked] == ["bytes=70000-"]
    (tmp_path / "b.bin.part").write_bytes(CONTENT)  # killed after the last byte; the size is not known
    fetch(server, tmp_path / "b.bin", size=None)
    assert (tmp_path / "b.bin").read_bytes() == CONTENT


def test_a_server_that_ignores_ranges_sends_all_again(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    server.cuts = [100_000]
    fetch(server, tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_damaged_beginnings_are_thrown_away_once_and_wrong_files_refused(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.bin.part").write_bytes(b"x" * 1000)
    fetch(server, tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    (tmp_path / "a.bin").write_bytes(b"damaged since")
    fetch(server, tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    server.files["a.bin"] = CONTENT[::-1]
    with pytest.raises(DiffATRError, match=f"md5 .* instead of {MD5}"):
        fetch(server, tmp_path / "b.bin")
    (tmp_path / "c.bin.part").write_bytes(CONTENT[:10])
    with pytest.raises(DiffATRError, match="not the file"):
        fetch(server, tmp_path / "c.bin")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin"]


def test_refusals_are_final_and_troubles_are_not(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DiffATRError, match="404"):
        fetch(server, tmp_path / "x", "nowhere")
    assert len(server.asked) == 1
    server.errors = [503, 429]
    assert fetch(server, tmp_path / "a.bin") == [1, 2]
    server.errors = [500] * 99
    with pytest.raises(DiffATRError, match=r"500.*3 times in a row.*again"):
        fetch(server, tmp_path / "b.bin", retries=2)
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(DiffATRError, match="connection failed"):
        fetch(server, tmp_path / "b.bin", retries=1)
    with pytest.raises(DiffATRError, match="not an address"):
        download("nonsense", tmp_path / "c")


@pytest.mark.parametrize("lengths", [True, False])
def test_a_server_that_sends_more_than_the_file_is_cut_short(server: Server, tmp_path: Path, lengths: bool) -> None:
    """Announced or not; what a small file's address sends may be without end."""
    server.lengths, server.extra = lengths, bytes(50_000_000)
    largest = 0

    def watch(done: int, total: int, note: str) -> None:
        nonlocal largest
        largest = max(largest, done)

    with pytest.raises(DiffATRError, match=r"not the file that was expected \(50300000 bytes instead|more than the 300000 bytes"):
        fetch(server, tmp_path / "a.bin", progress=watch)
    assert largest <= len(CONTENT)
    assert not list(tmp_path.iterdir())
    (tmp_path / "a.bin.part").write_bytes(CONTENT[:1000])  # the same behind a beginning: once more from the start, then no more
    with pytest.raises(DiffATRError, match="not the file"):
        fetch(server, tmp_path / "a.bin")
    assert [asked.split()[0] for asked in server.asked] == ["all", "bytes=1000-", "all"]
    server.lengths, server.extra = True, b""
    server.files["a.bin"] = CONTENT[:-5]
    with pytest.raises(DiffATRError, match="299995 bytes instead of 300000"):
        fetch(server, tmp_path / "a.bin")


def test_redirects_are_followed_but_not_without_end(server: Server, tmp_path: Path) -> None:
    server.redirects = {"b.bin": "/c.bin", "c.bin": "/a.bin", "x": "/y", "y": "/x"}
    fetch(server, tmp_path / "b.bin", "b.bin")
    assert (tmp_path / "b.bin").read_bytes() == CONTENT
    with pytest.raises(DiffATRError, match="from one address to another without end"):
        fetch(server, tmp_path / "x", "x")
    server.redirects = {f"r{n}": f"/r{n + 1}" for n in range(1000)}
    with pytest.raises(DiffATRError, match="without end"):
        fetch(server, tmp_path / "x", "r0")


def test_a_few_bytes_a_connection_are_no_progress(server: Server, tmp_path: Path) -> None:
    server.cuts = [1] * 1000
    with pytest.raises(DiffATRError, match=r"failed.*6 times in a row"):
        fetch(server, tmp_path / "a.bin")
    assert len(server.asked) == 6
    server.asked.clear()
    assert (tmp_path / "a.bin.part").read_bytes() == CONTENT[:6]
    server.cuts = [1, 1, 40_000, 1, 1, 1, 40_000, 1]
    assert fetch(server, tmp_path / "a.bin") == [1, 2, 1, 1, 2, 4, 1, 1]
    server.ranges = False
    server.cuts = [100_000] * 1000  # the same beginning again and again
    with pytest.raises(DiffATRError, match="6 times in a row"):
        fetch(server, tmp_path / "b.bin")


def test_a_connection_that_brings_next_to_nothing_is_given_up(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hours = iter(range(0, 10**9, 3600))
    server.cuts = [10] * 3
    with pytest.raises(DiffATRError, match=r"10 bytes in a minute\), 3 times in a row"):
        fetch(server, tmp_path / "a.bin", retries=2, clock=lambda: next(hours))
    monkeypatch.setattr(module, "_SLOWEST", 10)  # more than so many bytes, it may take its hours
    fetch(server, tmp_path / "a.bin", clock=lambda: next(hours))
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_range_that_cannot_be_had(server: Server, tmp_path: Path) -> None:
    server.errors = [416]
    with pytest.raises(DiffATRError, match="the server answers 416"):
        fetch(server, tmp_path / "a.bin")
    for size in (len(CONTENT), None):
        server.errors = [416]
        (tmp_path / "a.bin.part").write_bytes(CONTENT[:10])
        fetch(server, tmp_path / "a.bin", size=size)
        assert (tmp_path / "a.bin").read_bytes() == CONTENT
        (tmp_path / "a.bin").unlink()
    server.errors = [416, 416]
    (tmp_path / "a.bin.part").write_bytes(CONTENT[:10])
    with pytest.raises(DiffATRError, match="the server answers 416"):
        fetch(server, tmp_path / "a.bin")


def test_a_full_disk_or_a_folder_that_cannot_be_written_is_one_sentence(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiffATRError, match=r"file: a file is where a folder should be"):
        fetch(server, tmp_path / "file" / "a.bin")
    (tmp_path / "b.bin.part").mkdir()
    with pytest.raises(DiffATRError, match=r"b\.bin\.part: a folder is where a file should be"):
        fetch(server, tmp_path / "b.bin")
    monkeypatch.setattr(Path, "open", lambda *_: FullDisk())
    with pytest.raises(DiffATRError, match=r"a\.bin\.part: the disk is full\. Free some"):
        fetch(server, tmp_path / "a.bin")


class FullDisk(io.BytesIO):
    def flush(self) -> None:
        raise OSError(28, "No space left on device")

    def close(self) -> None: ...


def archive(path: Path, files: dict[str, bytes]) -> Path:
    with py7zr.SevenZipFile(path, "w") as out:
        for name, content in files.items():
            out.writestr(content, name)
    return path


def test_unpacking_is_whole_or_nothing(tmp_path: Path) -> None:
    packed = archive(tmp_path / "a.7z", {" development/ a.wav": b"1", "x/b.wav": CONTENT})
    done: list[int] = []
    unpack_7z(packed, tmp_path / "out", lambda now, total, note: done.append(now))
    assert (tmp_path / "out" / " development" / " a.wav").read_bytes() == b"1"
    assert (tmp_path / "out" / "x" / "b.wav").read_bytes() == CONTENT
    content = packed.read_bytes()
    for damaged in (content[: len(content) // 2], b"no archive", content[:5000] + b"xxxx" + content[5004:]):
        (tmp_path / "b.7z").write_bytes(damaged)
        with pytest.raises(DiffATRError, match=r"b\.7z: a damaged archive"):
            unpack_7z(tmp_path / "b.7z", tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.7z", "b.7z", "out"]


@pytest.mark.parametrize("name", ["../evil.wav", "a/../../evil.wav", "/tmp/evil.wav", "C:/evil.wav", "..\\evil.wav"])
def test_an_archive_may_not_write_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    packed = archive(tmp_path / "a.7z", {"good.wav": b"1", "evil.wav": b"2"})
    honest = py7zr.SevenZipFile.list

    def listing(self: object) -> list[object]:  # py7zr does not write such names itself
        entries = honest(self)
        entries[1].filename = name
        return entries

    monkeypatch.setattr(py7zr.SevenZipFile, "list", listing)
    with pytest.raises(DiffATRError, match="outside"):
        unpack_7z(packed, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.7z"]


@pytest.mark.parametrize("name", ["", ".", "./.", "/."])
@pytest.mark.parametrize("folder", [True, False])
def test_an_entry_without_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, folder: bool) -> None:
    packed = archive(tmp_path / "a.7z", {"good.wav": b"1", "x": b""})
    honest = py7zr.SevenZipFile.list

    def listing(self: object) -> list[object]:  # py7zr does not write such names itself
        entries = honest(self)
        entries[1].filename, entries[1].is_directory = name, folder
        return entries

    monkeypatch.setattr(py7zr.SevenZipFile, "list", listing)
    if folder and not name.startswith("/"):  # the folder itself, as some programs pack it
        unpack_7z(packed, tmp_path / "out")
        assert (tmp_path / "out" / "good.wav").read_bytes() == b"1"
        return
    with pytest.raises(DiffATRError, match=r"a\.7z: .*nothing was unpacked"):
        unpack_7z(packed, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.7z"]


@pytest.mark.parametrize("header", [True, False])
def test_an_encrypted_archive_is_called_so(tmp_path: Path, header: bool) -> None:
    with py7zr.SevenZipFile(tmp_path / "a.7z", "w", password="secret", header_encryption=header) as out:
        out.writestr(b"1", "a.wav")
    with pytest.raises(DiffATRError, match=r"a\.7z: an encrypted archive\. Unpack it with its password"):
        unpack_7z(tmp_path / "a.7z", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.7z"]


def test_an_archive_larger_than_the_disk_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = archive(tmp_path / "a.7z", {"a.wav": CONTENT})
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(DiffATRError, match=r"out: a\.7z unpacks to 0\.0 GB and the disk has 0\.0 GB left"):
        unpack_7z(packed, tmp_path / "out")


def test_flipped_bits_in_an_archive_are_an_error_or_change_nothing(tmp_path: Path) -> None:
    files = {f"development/{n}.wav": CONTENT[: 1000 + n] for n in range(3)}
    whole = archive(tmp_path / "a.7z", files).read_bytes()
    drawn, noticed = random.Random(0), 0
    for attempt in range(60):
        content = bytearray(whole)
        place = drawn.randrange(len(whole)) if attempt % 3 == 0 else drawn.choice([*range(40), *range(-120, 0)])
        content[place] ^= 1 << drawn.randrange(8)
        (tmp_path / "b.7z").write_bytes(content)
        out = tmp_path / f"out{attempt}"
        try:
            unpack_7z(tmp_path / "b.7z", out)
        except DiffATRError:
            assert not out.exists()
            noticed += 1
        else:
            assert {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*.wav")} == files
    assert noticed > 30
    assert not list(tmp_path.glob("*.part"))


def clotho_files(root: Path) -> dict[str, bytes]:
    """A Clotho of one clip a split, as the archives and tables that are downloaded."""
    files = {}
    for number, split in enumerate(("development", "validation", "evaluation")):
        heading = "file_name,caption_1,caption_2,caption_3,caption_4,caption_5"
        names = [" a b.wav", f"{split}.wav"]
        rows = [[name, *(f"{split} {n}" for n in range(5))] for name in names]
        tones = [tone(root / "t.wav", 500 + 200 * number + 100 * k).read_bytes() for k in range(2)]
        sounds = {f"{split}/{name}": content for name, content in zip(names, tones, strict=True)}
        files[f"clotho_audio_{split}.7z"] = archive(root / "a.7z", sounds).read_bytes()
        files[f"clotho_captions_{split}.csv"] = table(root / "c.csv", heading, rows).read_bytes()
        files[f"clotho_metadata_{split}.csv"] = table(root / "m.csv", "file_name,license", [[names[0], "CC0"]]).read_bytes()
    return files


def test_clotho_downloads_unpacks_checks_and_needs_neither_again(server: Server, tmp_path: Path) -> None:
    server.files = clotho_files(tmp_path)
    sums = {name: (hashlib.md5(content).hexdigest(), len(content)) for name, content in server.files.items()}
    out = tmp_path / "data" / "clotho"
    report = prepare_clotho(out, base=server.address, files=sums)
    assert [counts.clips for counts in report.splits.values()] == [2, 2, 2]
    assert all(asked.endswith("?download=1") for asked in server.asked)
    assert len(server.asked) == 9
    assert "can be deleted" in report.notes[0]
    first = load_dataset(tmp_path / "data", "clotho")
    for archive_ in (out / "download").glob("*.7z"):
        archive_.unlink()
    for sound in (out / "raw").rglob("*.wav"):
        sound.unlink()
    for folder in (out / "raw").iterdir():
        for path in (*folder.iterdir(), folder):
            path.rmdir()
    again = prepare_clotho(out, base=server.address, files=sums)
    assert (again.converted, again.kept, len(server.asked)) == (0, 6, 9)
    assert load_dataset(tmp_path / "data", "clotho").fingerprint == first.fingerprint
    (out / first.split("val")[0].path).unlink()
    repaired = prepare_clotho(out, base=server.address, files=sums)
    assert (repaired.converted, repaired.kept) == (1, 5)
    assert server.asked[9:] == ["all /clotho_audio_validation.7z?download=1"]
    assert load_dataset(tmp_path / "data", "clotho").fingerprint == first.fingerprint


def test_clotho_from_archives_and_folders_in_any_mix(tmp_path: Path) -> None:
    given = tmp_path / "given"
    for name, content in clotho_files(tmp_path).items():
        path = given / ("audio" if name.endswith("7z") else "text") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    unpack_7z(given / "audio" / "clotho_audio_development.7z", given / "unpacked")
    (given / "audio" / "clotho_audio_development.7z").unlink()
    (given / "unpacked" / "development" / "development.wav").unlink()
    (given / "audio" / "clotho_audio_evaluation.7z").rename(given / "clotho_audio_evaluation.7z")
    report = prepare_clotho(tmp_path / "data" / "clotho", given)
    assert [counts.clips for counts in report.splits.values()] == [1, 2, 2]
    assert [(skip.what, skip.reason) for skip in report.skipped] == [("train/development.wav", "missing")]
