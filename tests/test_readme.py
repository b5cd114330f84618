"""The README's first screen, its tables and its map; its blocks and links are tested with those of the guides."""

import re
from pathlib import Path

import pytest
from test_guides import NOT_YET, commands

from spectrafm_hf.metrics import METHOD_NAMES

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


@pytest.fixture
def readme():
    return README.read_text(encoding="utf-8")


def test_first_screen_has_exactly_the_two_commands(readme):
    first_block = re.search(r"```bash\n(.*?)```", readme, flags=re.DOTALL).group(1)
    assert [line.split("#")[0].strip() for line in first_block.strip().splitlines()] == ["make transfer", "make test"]


def test_it_can_be_read_to_its_end(readme):
    assert len(readme.splitlines()) <= 220


def test_tables_name_methods_as_the_commands_do(readme):
    main = re.search(r"^method .*?(?=^```)", readme, re.DOTALL | re.MULTILINE).group()
    benchmark = re.search(r"^\| \| optical.*?^\n", readme, re.DOTALL | re.MULTILINE).group()
    names = set(METHOD_NAMES.values())
    shown = [re.split(r"\s{2,}", line)[0] for line in main.splitlines()[2:]]
    assert len(shown) == 7
    assert set(shown) <= names
    assert {row.split("|")[1].strip(" *") for row in benchmark.strip().splitlines()[2:]} == names


def test_every_command_is_in_a_table(readme):
    rows = "\n".join(line for line in readme.splitlines() if line.startswith("|"))
    told = set(re.findall(r"`spectrafm ([a-z-]+)", rows))
    assert {name.split()[0] for name in commands()} | set(NOT_YET) <= told


def test_the_map_has_every_room(readme):
    """Modules and folders of the package stand in the map, and what stands there exists."""
    told = readme.partition("## Map of the house")[2].split("```")[1]
    package = ROOT / "spectrafm_hf"
    rooms = {path.name for path in package.glob("*.py")} - {"__init__.py"}
    rooms |= {f"{path.name}/" for path in package.iterdir() if (path / "__init__.py").is_file()}
    short = {"few_shot_stars.py": "few_shot_stars", "few_shot_candidates.py": "_candidates"}
    short |= {"few_shot_nested.py": "_nested", "few_shot_report.py": "_report"}
    short |= {"configuration_spectrafm.py": "configuration_", "modeling_spectrafm.py": "modeling_"}
    assert [room for room in sorted(rooms) if short.get(room, room) not in told] == []
    inside = told.partition("training/ ")[0]
    written = set(re.findall(r"\b\w+\.py\b", inside)) - rooms
    assert [name for name in sorted(written) if not list(package.rglob(name))] == []


def test_nothing_is_left_to_fill_in(readme):
    assert re.findall(r"@[A-Z]+@|\b[A-Z]+_(?:TEXT|MINUTES)\b", readme) == []
