"""The tests of the installed transformers, taken from its source distribution.

The wheel leaves them out. They are fetched once with pip, from whatever index pip is set up with, and unpacked where
they are asked for, so that they always fit the installed version and none of them lies in this repository.
"""

import os
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

from spectrafm_hf.readers.mangadap_wheel import cache_folder

PACKAGE = "transformers_tests"
"""What the tests can be imported as; `tests`, their name in the source distribution, could be anyone's."""

STUBS = {
    # Modules that the tests import and the source distribution leaves out. Nothing of the first two can run here.
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    # Read by ConfigTester: arguments that every configuration must take and keep.
    "utils/test_configuration_utils.py": "config_common_kwargs = "
    + repr(
        {
            "return_dict": False,
            "output_hidden_states": True,
            "output_attentions": True,
            "dtype": "float16",
            "chunk_size_feed_forward": 5,
            "architectures": ["SpectraFMModel"],
            "problem_type": "regression",
        }
    )
    + "\n",
}


def fetch_sdist(folder: Path | None = None) -> Path:
    """The source distribution of the installed transformers, downloaded on first use.

    Args:
        folder: Where it is kept; None = the package's cache, see `mangadap_wheel.cache_folder`.

    Raises:
        RuntimeError: It is neither there nor to be had; the message says what pip said.
    """
    folder = cache_folder() / "transformers-sdist" if folder is None else folder
    name = f"transformers-{version('transformers')}.tar.gz"
    if (folder / name).exists():
        return folder / name
    folder.mkdir(parents=True, exist_ok=True)
    # Downloaded beside its place and moved into it, so that what was cut off half-way is never taken for the whole.
    with tempfile.TemporaryDirectory(dir=folder) as part:
        # Only transformers from source: what builds its metadata may come as a wheel.
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--no-binary", "transformers", "--dest", part, f"transformers=={version('transformers')}"]
        told = subprocess.run(command, capture_output=True, text=True, check=False)
        if not (Path(part) / name).exists():
            raise RuntimeError(
                f"the tests of transformers come in {name}, which pip could not fetch:\n{told.stderr.strip()}\n"
                f"With no package index at hand, put that file into {folder}."
            )
        os.replace(Path(part) / name, folder / name)
    return folder / name


def unpack_tests(sdist: Path, folder: Path) -> None:
    """Put the tests of `sdist` into `folder`, so that with it on sys.path they are the package `PACKAGE`."""
    root = folder / PACKAGE
    for stub, source in STUBS.items():
        (root / stub).parent.mkdir(parents=True)
        (root / stub).write_text(source)
        (root / stub).with_name("__init__.py").touch()
    (root / "__init__.py").touch()
    with tarfile.open(sdist) as archive:
        for member in archive:
            _, *path = Path(member.name).parts
            # Only what lies flat in tests/: none of these names can lead out of the folder.
            if len(path) == 2 and path[0] == "tests" and path[1].endswith(".py"):
                (root / path[1]).write_bytes(archive.extractfile(member).read())
