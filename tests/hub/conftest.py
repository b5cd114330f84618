"""A Hub of its own for each test, with real clients logged in to it."""

from pathlib import Path
from urllib.parse import urlsplit

import datasets.config
import huggingface_hub
import pytest
import transformers.dynamic_module_utils
from huggingface_hub import HfFileSystem, constants

from .local_hub import LocalHub

TOKEN = "hf_astroSECRET0123456789"
STRANGER = "hf_strangerSECRET9876543210"


def pytest_collection_modifyitems(items):
    offline = pytest.mark.skip(reason="clients are offline; run with HF_HUB_OFFLINE=0 (make test-hub does)")
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.hub)
            if constants.HF_HUB_OFFLINE:
                item.add_marker(offline)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The Hub that in-process clients know by HF_ENDPOINT; they are logged in as astro and cache in `tmp_path`."""
    home = tmp_path / "home"
    with LocalHub(tmp_path / "hub", port=urlsplit(constants.ENDPOINT).port) as hub:
        hub.add_user("astro", TOKEN)
        hub.add_user("stranger", STRANGER)
        for name, value in hub.environment(TOKEN, home).items():
            monkeypatch.setenv(name, value)
        # What was read from the environment at import.
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "datasets")
        monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(home / "modules"))
        _forget()
        yield hub
        _forget()
    assert not hub.errors, "\n".join(hub.errors)


def _forget() -> None:
    """No connection to a former Hub, and nothing remembered of its repositories."""
    huggingface_hub.close_session()
    HfFileSystem.clear_instance_cache()
