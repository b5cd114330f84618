"""What README and guides show works as shown: every block of code is run or read, every link leads somewhere.

A page is read from top to bottom in a folder of its own, with the inputs that the guides name; what one block makes,
the next one finds. A block that nothing here knows how to check fails the test of its page.
"""

import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from spectrafm_hf import cli, shipped, vacuum_to_air
from spectrafm_hf.builders.build import build_dataset
from spectrafm_hf.builders.synthetic import SyntheticConfig
from spectrafm_hf.examples import EXAMPLES, example
from spectrafm_hf.readers.any_file import read_spectrum
from spectrafm_hf.recipe import read_recipe

ROOT = Path(__file__).parents[1]
GUIDES = sorted((ROOT / "hub_cards" / "guides").glob("*.md"))
PAGES = [ROOT / "README.md", *GUIDES]

NOT_YET: list[str] = []
"""Commands of `spectrafm` that the pages tell of before they are there."""

RUN = ("predict", "similar", "evaluate", "info", "build synthetic", "build folder")
"""Commands that are run, with the changes of `SMALLER`."""

PARSED = {
    "finetune": "minutes; small, in test_few_shot_kit.py",
    "benchmark": "an hour; small, in test_protocols.py",
    "calibrate": "minutes; small, in test_trust.py",
    "explain": "minutes, however few its stars; of a tiny model, in test_explain.py",
    "push": "needs a Hub; in hub/test_push.py",
    "pretrain": "minutes; small, in test_stages.py",
    "cache": "what is kept on this machine is nobody's business",
}
"""Commands whose options are read and not run, and why."""

SMALLER = {"--n": "300", "--num-proc": "1"}
"""Options of a command that is run, so that it takes seconds."""

NEEDS_A_CLUSTER = "--ray"
ON_A_HUB = "my-name/"
"""Python that names a repository; run in hub/test_readme.py."""

LABELS = ("teff", "logg", "fe_h")
"""Of the tables that the pages name."""

PICTURES = {"README.md": 2, "contributing.md": 1}
"""Blocks without a language: a table that takes minutes to make, the map of the house, the way of a spectrum."""


@dataclass(frozen=True)
class Block:
    """A block of code of a page; `line` is that of its fence, from 1."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def where(self):
        return f"{self.page.name}:{self.line}"


def blocks_of(page):
    """Blocks of a page, from top to bottom."""
    found, inside, language = [], None, ""
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("```"):
            if inside is None:
                inside, start, language = [], number, line.removeprefix("```").strip()
            else:
                found.append(Block(page, start, language, "\n".join(inside) + "\n"))
                inside = None
        elif inside is not None:
            inside.append(line)
    assert inside is None, f"{page.name}: a block is not closed"
    return found


def prose_of(page):
    """A page without its blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def named(pages):
    return pytest.mark.parametrize("page", pages, ids=lambda page: page.stem)


# ---------------------------------------------------------------- what the guides find


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """Inputs under the names that the pages give them."""
    home = tmp_path_factory.mktemp("shelf")
    (home / "spectra").mkdir()
    rows = [",".join(["file", "star", *LABELS])]
    for name in ("h-band-red-giant", "h-band-metal-poor-giant", "optical-solar-like"):
        shutil.copyfile(example(name), home / "spectra" / f"{name}.fits")
        rows.append(",".join([f"{name}.fits", name, *(str(EXAMPLES[name].labels[label]) for label in LABELS)]))
    for name in ("mytable.csv", "stars.csv", "kept_back.csv"):
        (home / name).write_text("\n".join(rows) + "\n")
    shutil.copyfile(example("h-band-red-giant"), home / "star.fits")
    dwarf = read_spectrum(example("optical-solar-like"))  # at rest, in vacuum; as a text file it is neither
    moving = vacuum_to_air(dwarf.wavelength * (1 - 12.3 / 299_792.458))
    np.savetxt(home / "star.txt", np.stack([moving, dwarf.flux], axis=1))
    build_dataset([SyntheticConfig(n=int(SMALLER["--n"]))], home / "data" / "synthetic", progress=False)
    (home / "runs" / "spectrafm-small").mkdir(parents=True)
    (home / "my-model").symlink_to(shipped("spectrafm-small"), target_is_directory=True)
    for name in ("spectrafm_hf", "training", "hub_cards"):
        (home / name).symlink_to(ROOT / name, target_is_directory=True)
    return home


@pytest.fixture
def desk(shelf, tmp_path, monkeypatch):
    """A folder of one page's own, and the arrays that its Python finds."""
    for item in shelf.iterdir():
        if item.name in ("data", "runs"):  # pages write there
            (tmp_path / item.name).mkdir()
            for inside in item.iterdir():
                (tmp_path / item.name / inside.name).symlink_to(inside)
        else:
            (tmp_path / item.name).symlink_to(item)
    monkeypatch.chdir(tmp_path)
    star = read_spectrum("star.fits")
    error = np.where(star.ivar > 0, np.maximum(star.ivar, 1e-12) ** -0.5, np.nan)
    arrays = {"flux": star.flux, "wavelength": star.wavelength, "flux_error": error, "bad_pixel": star.bad_pixel}
    return arrays | {"__name__": "a_guide"}


# ---------------------------------------------------------------- one block of each language


def run_python(block, names, tmp_path, capsys):
    """What it prints; tests that it defines are run as well, and what it calls a table must have answers."""
    before = set(names)
    capsys.readouterr()
    exec(compile("\n" * block.line + block.text, str(block.page), "exec"), names)  # tracebacks tell the page's line
    for name in sorted(set(names) - before):
        if name.startswith("test_"):
            names[name](tmp_path)
    if (table := names.pop("table", None)) is not None:
        assert np.isfinite(table["value"]).all(), f"{block.where}: no answer"
    return capsys.readouterr().out


def commands():
    """Name -> command, those of `build` as `build synthetic`."""
    found = {}
    for name, command in typer.main.get_command(cli.app).commands.items():
        below = getattr(command, "commands", None)
        found |= {f"{name} {one}": inner for one, inner in below.items()} if below else {name: command}
    return found


def run_spectrafm(words, where):
    """What `spectrafm` prints; nothing, where its options are read only."""
    if words[0] in NOT_YET:
        return ""
    n_words = 2 if words[0] == "build" else 1
    name, told = " ".join(words[:n_words]), words[n_words:]
    assert name in commands(), f"{where}: spectrafm {name} is no command"
    if name in PARSED or NEEDS_A_CLUSTER in told:
        commands()[name].make_context(name, list(told))
        return ""
    assert name in RUN, f"{where}: nothing runs spectrafm {name}"
    for option, value in SMALLER.items():
        if option in told:
            told[told.index(option) + 1] = value
    done = CliRunner().invoke(cli.app, [*words[:n_words], *told])
    assert done.exit_code == 0, f"{where}: spectrafm {shlex.join(words)}: {done.output} {done.exception!r}"
    return done.output


def check_options(words, source, where):
    """Options after a script stand in its source, of argparse or of typer."""
    for word in words:
        if word.startswith("--"):
            option = word.split("=")[0]
            known = f'"{option}"' in source or f"{option.removeprefix('--').replace('-', '_')}:" in source
            assert known or option == "--help", f"{where}: nobody knows {option}"


def check_other(words, where):
    """Programs of others, and scripts of ours that take minutes: what they name is there."""
    makefile = (ROOT / "Makefile").read_text()
    program, *told = words
    scripts = [Path(word) for word in words if re.fullmatch(r"(training|hub_cards)/\S+\.(py|sh|sbatch)", word)]
    for word in told:
        if re.match(r"(training|hub_cards|spectrafm_hf)/", word):
            assert (ROOT / word).exists(), f"{where}: there is no {word}"
    if program == "make":
        for word in told:
            name, is_variable, _ = word.partition("=")
            there = f"$({name})" in makefile if is_variable else re.search(rf"^{name}:", makefile, re.MULTILINE)
            assert there, f"{where}: make knows no {name}"
    elif program == "python" and told[0] == "-m":
        source = ROOT.joinpath(*told[1].split(".")).with_suffix(".py")
        assert source.is_file(), f"{where}: there is no module {told[1]}"
        check_options(told[2:], source.read_text(), where)
    elif scripts:
        place = words.index(str(scripts[0]))
        passed_on = ROOT / ("training/examples/stream_trainer.py" if scripts[0].suffix != ".py" else scripts[0])
        check_options(words[place + 1 :], passed_on.read_text(), where)
    elif program == "pip":
        for extra in re.findall(r"spectrafm_hf\[(\w+)\]", " ".join(told)):
            assert re.search(rf"^{extra} = ", (ROOT / "pyproject.toml").read_text(), re.MULTILINE), f"{where}: {extra}"
    else:
        pytest.fail(f"{where}: nothing checks {shlex.join(words)}")


def run_bash(block):
    """What the commands of `spectrafm` print; those of others are checked."""
    printed = []
    for number, line in enumerate(block.text.splitlines(), block.line + 1):
        words = shlex.split(line.partition(" > ")[0], comments=True)
        if not words:
            continue
        where = f"{block.page.name}:{number}"
        if words[0] == "spectrafm":
            printed.append(run_spectrafm(words[1:], where))
        else:
            check_other(words, where)
    return "\n".join(printed)


def shape(text):
    """Lines without their numbers, and without what makes columns as wide as these."""
    lines = []
    for line in text.splitlines():
        line = re.sub(r"[-+\u2212]?\d[\d.,]*(e[-+]\d+)?", "#", line)
        line = re.sub(r"([-\u2500\u2501])\1+", r"\1", line)
        lines.append(" ".join(line.split()))
    return [line for line in lines if line]


def check_shown(block, printed):
    """Every line that a page shows was printed, but for its numbers, in this order."""
    assert printed is not None, f"{block.where}: shows what no block before it prints"
    there = iter(shape(printed))
    for line in shape(block.text):
        assert line in there, f"{block.where}: {line!r} is not in what was printed:\n{printed}"


# ---------------------------------------------------------------- pages


@named(PAGES)
def test_every_block_of_a_page_does_what_it_says(page, desk, tmp_path, capsys):
    printed, pictures = None, 0
    for block in blocks_of(page):
        if block.language == "python":
            on_a_hub = ON_A_HUB in block.text
            printed = None if on_a_hub else run_python(block, desk, tmp_path, capsys)
        elif block.language == "bash":
            printed = run_bash(block) or None
        elif block.language == "text":
            check_shown(block, printed)
        elif block.language == "yaml":
            recipe = tmp_path / "a_recipe.yaml"
            recipe.write_text(block.text)
            read_recipe(recipe)
        elif block.language == "":
            pictures += 1
        else:
            pytest.fail(f"{block.where}: nothing checks a block of {block.language}")
    assert pictures == PICTURES.get(page.name, 0), f"{page.name}: say of what language its blocks are"


@named(PAGES)
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\((?!http)([^)]+)\)", prose_of(page)):
        path, _, heading = target.partition("#")
        there = page.parent / path if path else page
        assert there.exists(), f"{page.name} links to {path}, which is not there"
        if heading:
            titles = re.findall(r"^#+ (.*)$", prose_of(there), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}


@named(PAGES)
def test_commands_and_options_in_the_text_are_there(page):
    text = prose_of(page)
    known = {name.split()[0] for name in commands()} | set(NOT_YET)
    assert set(re.findall(r"`spectrafm ([a-z-]+)", text)) <= known
    scripts = [*ROOT.glob("training/*.py"), *ROOT.glob("training/benchmarks/*.py")]
    sources = "".join(path.read_text() for path in scripts)
    options = {option for command in commands().values() for one in command.params for option in options_of(one)}
    for option in re.findall(r"`(--[a-z][a-z0-9-]+)", text):
        assert option in options or f'"{option}"' in sources, f"{page.name}: nobody knows {option}"
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make ([a-z-]+)", text):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{page.name}: make knows no {target}"


def options_of(parameter):
    return [*parameter.opts, *parameter.secondary_opts]


def test_what_is_not_yet_there_is_not_there():
    """Else its blocks would go unread: take it out of `NOT_YET`."""
    assert not {name.split()[0] for name in commands()} & set(NOT_YET)


@named(GUIDES)
def test_a_guide_is_found_and_is_short(page):
    assert f"](hub_cards/guides/{page.name})" in (ROOT / "README.md").read_text(encoding="utf-8")
    text = page.read_text(encoding="utf-8")
    assert re.match(r"# .+\n\nFor", text), "a guide begins with what it is for"
    assert len(text.splitlines()) <= 150


def test_the_checks_can_fail(tmp_path, desk, capsys):
    """A block that lies is found out."""
    page = tmp_path / "lies.md"
    page.write_text("```bash\nspectrafm predict --loud star.fits\n```\n```python\nprint(2)\n```\n```text\nthree\n```\n")
    command, code, output = blocks_of(page)
    with pytest.raises(AssertionError, match=r"lies\.md:2: spectrafm predict --loud"):
        run_bash(command)
    printed = run_python(code, desk, tmp_path, capsys)
    with pytest.raises(AssertionError, match=r"lies\.md:7: 'three' is not in"):
        check_shown(output, printed)
    with pytest.raises(pytest.fail.Exception, match="nothing checks curl"):
        run_bash(Block(page, 1, "bash", "curl example.org\n"))
