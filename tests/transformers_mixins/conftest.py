"""Only `pytest -m mixins` collects this folder: without it nothing is fetched, unpacked or imported."""

import sys
import tempfile
from pathlib import Path

import pytest

from transformers_mixins.sdist import fetch_sdist, unpack_tests

# Marks of transformers' tests, which its own conftest registers.
THEIR_MARKS = (
    "accelerate_tests",
    "flash_attn_test",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "is_training_test",
    "torch_compile_test",
)


def _wanted(config):
    return config.option.markexpr.strip() == "mixins"


def pytest_configure(config):
    if not _wanted(config):
        return
    for mark in THEIR_MARKS:
        config.addinivalue_line("markers", f"{mark}: of transformers")
    folder = tempfile.TemporaryDirectory(prefix="transformers_tests_")
    config.add_cleanup(folder.cleanup)
    try:
        unpack_tests(fetch_sdist(), Path(folder.name))
    except RuntimeError as error:
        pytest.exit(str(error), returncode=1)
    sys.path.insert(0, folder.name)


def pytest_ignore_collect(collection_path, config):
    return None if _wanted(config) else True
