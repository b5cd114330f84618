"""What the README and the cards say of the Hub works as they say it."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from conftest import tiny_extractor, tiny_model

from spectrafm_hf.hub import push

README = Path(__file__).parents[2] / "README.md"


def test_the_pipeline_reads_a_pushed_model(hub, tmp_path, capsys):
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_extractor().save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text("# A model\n")
    (example,) = [code for code in re.findall(r"```python\n(.*?)```", README.read_text(), re.S) if "pipeline" in code]
    name = re.search(r'model="([^"]+)"', example).group(1)
    push(tmp_path / "model", name.replace("my-name", "astro"))
    told = {"flux": np.ones(800), "wavelength": np.linspace(5000, 5400, 800)}
    exec(example.replace("my-name", "astro"), told)
    printed = capsys.readouterr().out
    assert re.search(
        r"'value': -?[0-9.]+, 'sigma': [0-9.]+, 'interval68': \[.*'interval95': \[.*'unit': 'dex'", printed
    )


def test_the_options_of_a_push_are_there():
    commands = re.findall(r"spectrafm push (.*)", README.read_text())
    assert len(commands) == 2
    told = subprocess.run(
        [sys.executable, "-m", "spectrafm_hf.cli", "push", "--help"], capture_output=True, text=True, check=True
    ).stdout
    for option in {option for command in commands for option in re.findall(r"--[a-z-]+", command.split("#")[0])}:
        assert option in told
