"""Fetching the libraries: from pip or from a file, once, whole or not at all. No network: a small wheel stands in."""

import hashlib
import json
import os
import signal
import time
import zipfile
from multiprocessing.context import BaseContext
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import pytest

from spectrafm_hf.readers import mangadap_wheel
from spectrafm_hf.readers.mangadap_wheel import LibrariesUnavailableError, cache_folder, fetch_libraries

TEMPLATES = "mangadap/data/spectral_templates"
INFO = "sdss_mangadap-4.5.0.dist-info"
FILES = {
    f"{TEMPLATES}/miles/MILES_res2.50_star_m0001V.fits": "one",
    f"{TEMPLATES}/miles/paramsMILES_v9.1.txt": "table",
    f"{TEMPLATES}/miles/omit/MILES_res2.50_star_m0970V.fits": "set aside by its authors",
    f"{TEMPLATES}/stelib/STELIB_v3.2_HD009138.fits": "star",
    f"{TEMPLATES}/stelib/../../../../../../outside.txt": "escaped",
    f"/{TEMPLATES}/stelib/absolute.fits": "escaped",
    f"../{TEMPLATES}/stelib/above.fits": "escaped",
    f"{TEMPLATES}/other/large.fits": "not ours",
    "mangadap/__init__.py": "raise SystemExit('a wheel must never be run')",
    f"{INFO}/licenses/LICENSE.md": "BSD 3-Clause",
    f"{INFO}/METADATA": "Metadata-Version: 2.1\nName: sdss-mangadap\nVersion: 4.5.0\n",
    f"{INFO}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    f"{INFO}/RECORD": "",
}


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel with the real layout, known by its checksum; pip is kept off the network."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    path = folder / mangadap_wheel.WHEEL_NAME
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in FILES.items():
            archive.writestr(name, text)
    monkeypatch.setattr(mangadap_wheel, "WHEEL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    for other in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(other, raising=False)
    return path


@pytest.fixture
def cache(tmp_path: Path, wheel: Path) -> Path:
    """A cache folder where the user has put the wheel."""
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / wheel.name).write_bytes(wheel.read_bytes())
    return folder


def contents(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


UNPACKED = {
    "LICENSE.md",
    "manifest.json",
    "miles/MILES_res2.50_star_m0001V.fits",
    "miles/paramsMILES_v9.1.txt",
    "stelib/STELIB_v3.2_HD009138.fits",
}


def test_wheel_in_the_cache_needs_no_network(cache: Path) -> None:
    folder = fetch_libraries(cache)
    assert contents(folder) == UNPACKED
    assert (folder / "stelib/STELIB_v3.2_HD009138.fits").read_text() == "star"
    assert json.loads((folder / "manifest.json").read_text())["files"] == {"miles": 2, "stelib": 1}
    assert (cache / mangadap_wheel.WHEEL_NAME).is_file()  # the user's own file stays


def test_nothing_escapes_the_cache(cache: Path, tmp_path: Path) -> None:
    fetch_libraries(cache)
    assert not [path for path in tmp_path.rglob("*.*") if path.name in ("outside.txt", "absolute.fits", "above.fits")]


def test_pip_downloads_and_the_wheel_is_deleted(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))  # the real pip, a folder for an index
    cache = tmp_path / "cache"
    assert contents(fetch_libraries(cache)) == UNPACKED
    assert [path.suffix for path in cache.iterdir() if path.is_file()] == [".lock"]
    assert not list(cache.glob(".partial-*"))


def test_second_call_touches_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fetch_libraries(cache)
    (cache / mangadap_wheel.WHEEL_NAME).unlink()

    def refuse(*_: object) -> None:
        raise AssertionError("a complete cache was fetched again")

    monkeypatch.setattr(mangadap_wheel, "_fetch", refuse)
    assert fetch_libraries(cache) == folder


@pytest.mark.parametrize("lost", ["manifest.json", "miles/paramsMILES_v9.1.txt", "stelib/STELIB_v3.2_HD009138.fits"])
def test_incomplete_folder_is_made_whole(cache: Path, lost: str) -> None:
    folder = fetch_libraries(cache)
    (folder / lost).unlink()
    assert contents(fetch_libraries(cache)) == UNPACKED


def test_folder_of_another_wheel_is_replaced(cache: Path) -> None:
    folder = fetch_libraries(cache)
    (folder / "manifest.json").write_text(json.dumps({"wheel_sha256": "0" * 64, "files": {"miles": 2, "stelib": 1}}))
    fetch_libraries(cache)
    assert json.loads((folder / "manifest.json").read_text())["wheel_sha256"] == mangadap_wheel.WHEEL_SHA256


def test_without_network_one_sentence_says_what_to_do(wheel: Path, tmp_path: Path) -> None:
    with pytest.raises(LibrariesUnavailableError) as caught:
        fetch_libraries(tmp_path / "cache")
    message = str(caught.value)
    assert "121 MB" in message
    assert "No matching distribution found" in message
    assert f"connect to the network once, or put {wheel.name} into {tmp_path / 'cache'}" in message
    assert not list((tmp_path / "cache").glob(".partial-*"))


def test_no_credentials_in_message_or_output(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://user:hunter2@127.0.0.1:9/simple")  # nobody listens there
    with pytest.raises(LibrariesUnavailableError) as caught:
        fetch_libraries(tmp_path / "cache")
    output = capfd.readouterr()
    assert "hunter2" not in str(caught.value) + output.out + output.err


def test_reason_hides_addresses(tmp_path: Path) -> None:
    log = tmp_path / "pip.log"
    log.write_text("Looking in indexes: https://a:b@c/d\nERROR: no https://tok3n@host/simple, user:tok3n@host\nmore\n")
    assert mangadap_wheel._reason(log) == "no <address> <address>"
    log.write_text("")
    assert mangadap_wheel._reason(log) == "pip said nothing"


def test_wrong_checksum_names_both_and_removes_the_file(cache: Path) -> None:
    path = cache / mangadap_wheel.WHEEL_NAME
    path.write_bytes(path.read_bytes()[:-10])
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(LibrariesUnavailableError, match=f"{mangadap_wheel.WHEEL_SHA256}, found {found}"):
        fetch_libraries(cache)
    assert not path.exists()
    assert not list(cache.glob("sdss-mangadap*"))


def test_cache_that_cannot_be_written(wheel: Path, tmp_path: Path) -> None:
    (tmp_path / "a_file").write_text("")
    with pytest.raises(LibrariesUnavailableError, match=r"about 250 MB in .*a_file.*SPECTRAFM_CACHE"):
        fetch_libraries(tmp_path / "a_file" / "cache")


def test_disk_full_while_unpacking(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> bytes:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "read", full)
        with pytest.raises(LibrariesUnavailableError, match=r"No space left on device.*free some space"):
            fetch_libraries(cache)
    assert not list(cache.glob("sdss-mangadap-*"))
    assert contents(fetch_libraries(cache)) == UNPACKED


def fetch_and_die(cache: Path, checksum: str) -> None:
    """In a process of its own: killed at the second file."""
    read, seen = zipfile.ZipFile.read, []

    def read_or_die(self: zipfile.ZipFile, member: str) -> bytes:
        seen.append(member)
        if len(seen) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, member)

    zipfile.ZipFile.read = read_or_die  # type: ignore[method-assign, assignment]
    mangadap_wheel.WHEEL_SHA256 = checksum
    fetch_libraries(cache)


def test_killed_half_way_nothing_counts_as_done(cache: Path, fresh_processes: BaseContext) -> None:
    process = fresh_processes.Process(target=fetch_and_die, args=(cache, mangadap_wheel.WHEEL_SHA256))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert len(list(cache.glob(".partial-*"))) == 1
    assert not list(cache.glob("sdss-mangadap-*"))
    assert contents(fetch_libraries(cache)) == UNPACKED
    assert not list(cache.glob(".partial-*"))


def fetch_slowly(cache: Path, checksum: str, unpacked: SimpleQueue) -> None:
    """In a process of its own. Unpacking takes half a second, so that the other arrives while this one is at work."""
    unpack = mangadap_wheel._unpack

    def slowly(wheel: Path, folder: Path) -> None:
        unpack(wheel, folder)
        time.sleep(0.5)
        unpacked.put(os.getpid())

    mangadap_wheel._unpack = slowly
    mangadap_wheel.WHEEL_SHA256 = checksum
    fetch_libraries(cache)


def test_two_processes_at_once(cache: Path, fresh_processes: BaseContext) -> None:
    unpacked = fresh_processes.SimpleQueue()
    told = cache, mangadap_wheel.WHEEL_SHA256, unpacked
    both = [fresh_processes.Process(target=fetch_slowly, args=told) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0]
    assert unpacked.get() in [process.pid for process in both]
    assert unpacked.empty()
    assert contents(cache / "sdss-mangadap-4.5.0") == UNPACKED


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPECTRAFM_CACHE", str(tmp_path / "chosen"))
    assert cache_folder() == tmp_path / "chosen"
    assert cache_folder(tmp_path) == tmp_path
    monkeypatch.delenv("SPECTRAFM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "spectrafm"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "spectrafm"
