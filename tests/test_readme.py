"""What the README shows works as shown."""

import re
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_extractor, tiny_model
from typer.testing import CliRunner

from spectrafm_hf import cli

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture
def readme():
    return README.read_text()


def test_first_screen_has_exactly_the_two_commands(readme):
    first_block = re.search(r"```bash\n(.*?)```", readme, flags=re.DOTALL).group(1)
    assert [line.split("#")[0].strip() for line in first_block.strip().splitlines()] == ["make transfer", "make test"]


def test_python_example_predicts_labels(readme, tmp_path, capsys):
    model, extractor = tiny_model(), tiny_extractor()
    model.save_pretrained(tmp_path)
    extractor.save_pretrained(tmp_path)
    example = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)[0]
    assert "runs/transfer/2-observed" in example
    assert len(example.strip().splitlines()) <= 8
    low, high = extractor.wavelength_range
    wavelength = np.linspace(low, high, 800)
    exec(example.replace("runs/transfer/2-observed", str(tmp_path)), {"flux": np.ones(800), "wavelength": wavelength})
    printed = capsys.readouterr().out
    assert all(f"'{name}': {{'value': array(" in printed for name in extractor.label_names)


def test_example_of_other_inputs_predicts_labels(readme, capsys):
    example = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)[1]
    wavelength = np.linspace(15_200, 15_400, 900)
    exec(example, {"flux": np.ones(900), "flux_error": np.full(900, 0.02), "wavelength": wavelength})
    assert "'fe_h': {'value': array(" in capsys.readouterr().out


def test_dataset_example_builds_and_streams(readme, tmp_path, capsys):
    command = re.search(r"\.venv/bin/spectrafm (build synthetic .*)", readme).group(1).split()
    command[command.index("--n") + 1] = "300"
    folder = str(tmp_path / "synthetic")
    command[command.index("--output") + 1] = folder
    assert CliRunner().invoke(cli.app, command).exit_code == 0
    example = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)[2]
    exec(example.replace("data/synthetic", folder, 1), {})
    assert -2.5 <= float(capsys.readouterr().out) <= 0.5


def test_every_file_the_readme_names_exists(readme):
    links = re.findall(r"\]\((?!http)([^)#]+)\)", readme)
    assert links
    assert [link for link in links if not (README.parent / link).exists()] == []


def test_nothing_is_left_to_fill_in(readme):
    assert re.findall(r"@[A-Z]+@|\b[A-Z]+_(?:TEXT|MINUTES)\b", readme) == []
