"""Who may import whom: a reader follows one spectrum through the files without opening one twice."""

import ast
import sys
from pathlib import Path

import pytest

import spectrafm_hf

PACKAGE = Path(spectrafm_hf.__file__).parent
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if "hub_cards" not in path.parts
}
REMOTE_CODE = (
    "attention_spectrafm",
    "configuration_spectrafm",
    "modeling_spectrafm",
    "feature_extraction_spectrafm",
    "pipeline_spectrafm",
    "labels",
    "spectra",
)


def imports(module):
    """Every import anywhere in a module: (level of the dots, dotted name); those of ours as `spectrafm_hf.x`."""
    package = module.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {(0, alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = package[: len(package) - node.level + 1]
                names = [node.module] if node.module else [alias.name for alias in node.names]
                found |= {(node.level, ".".join(["spectrafm_hf", *base, name])) for name in names}
            else:
                found.add((0, node.module))
    return found


def ours(module):
    return {name.removeprefix("spectrafm_hf.") for _, name in imports(module) if name.split(".")[0] == "spectrafm_hf"}


def others(module):
    return {name.split(".")[0] for _, name in imports(module)} - {"spectrafm_hf"}


def test_the_package_is_found_and_read():
    assert {"labels", "modeling_spectrafm", "readers.miles", "synthesis.cannon"} <= set(MODULES)
    assert ours("feature_extraction_spectrafm") == {"labels", "spectra"}
    assert ours("synthesis.observing") == {"spectra"}
    assert ours("transfer") >= {"plots", "baselines", "builders.libraries"}
    assert "numpy" in others("spectra")


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("labels", set()),
        ("spectra", set()),
        ("configuration_spectrafm", set()),
        ("attention_spectrafm", set()),
        ("modeling_spectrafm", {"attention_spectrafm", "configuration_spectrafm"}),
        ("feature_extraction_spectrafm", {"spectra", "labels"}),
        ("metrics", {"labels"}),
        ("plots", {"labels", "metrics"}),
        ("few_shot", {"spectra"}),
        ("line_list", {"spectra"}),
        ("explanation", {"labels", "line_list", "plots"}),
        ("reconstruction", {"feature_extraction_spectrafm", "spectra", "synthesis.cannon"}),
        ("applicability", {"feature_extraction_spectrafm", "labels", "reconstruction", "synthesis.cannon"}),
        ("calibration", {"feature_extraction_spectrafm", "labels", "metrics"}),
        ("optimisation", set()),
        ("answers", set()),
        (
            "sources",
            {"readers.any_file", "readers.in_memory", "readers.miles", "readers.text_columns", "spectra"}
            | {"readers.fits_file", "readers.lamost", "readers.votable"},
        ),
        (
            "survey_input",
            {"builders.build", "builders.grids", "builders.parquet_layout", "hub", "sources", "spectra"}
            | {"readers.pixel_flags", "readers.star_names"},
        ),
        (
            "catalogue",
            {"builders.build", "builders.parquet_layout", "checkpoints", "hub", "labelling", "sources"}
            | {"builders.ray_cluster", "readers.catalogue_file", "survey_input"},
        ),
        ("similar", {"labelling", "labels", "readers.astropy_table", "readers.catalogue_file", "sources"}),
        (
            "pretraining",
            {"collation", "feature_extraction_spectrafm", "loading", "synthesis.observing", "synthesis.surveys"},
        ),
    ],
)
def test_station_imports_only_what_lies_before_it(module, allowed):
    assert ours(module) <= allowed


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("readers.")])
def test_readers_know_spectra_and_labels(module):
    assert {name for name in ours(module) if not name.startswith("readers")} <= {"spectra", "labels"}


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("synthesis.")])
def test_synthesis_knows_spectra_and_labels(module):
    assert {name for name in ours(module) if not name.startswith("synthesis")} <= {"spectra", "labels"}


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("builders.")])
def test_builders_do_not_know_the_model(module):
    allowed = ("readers", "synthesis", "builders", "spectra", "labels", "card_templates")
    assert {name for name in ours(module) if not name.startswith(allowed)} == set()


def test_astropy_is_imported_by_readers_only():
    assert {name for name in MODULES if "astropy" in others(name)} <= {n for n in MODULES if n.startswith("readers.")}


def test_labels_spectra_and_metrics_are_light():
    standard = set(sys.stdlib_module_names)
    assert others("labels") <= standard
    assert others("spectra") <= standard | {"numpy"}
    assert others("metrics") <= standard | {"numpy", "evaluate", "datasets"}


@pytest.mark.parametrize("module", REMOTE_CODE)
def test_files_a_checkpoint_ships_stand_alone(module):
    """`register_for_auto_class` copies flat files with one-dot imports and nothing else."""
    relative = {(level, name) for level, name in imports(module) if name.split(".")[0] == "spectrafm_hf"}
    assert all(level == 1 for level, _ in relative)
    assert {name.removeprefix("spectrafm_hf.") for _, name in relative} <= set(REMOTE_CODE)
    heavy = {"astropy", "sklearn", "matplotlib", "scipy", "pandas", "datasets", "accelerate", "evaluate"}
    assert not others(module) & heavy


def test_nothing_but_the_command_line_imports_transfer_and_benchmark():
    assert {name for name in MODULES if {"transfer", "benchmark"} & ours(name)} <= {"commands.learning"}


def test_nothing_knows_the_commands_but_the_one_that_puts_them_together():
    assert {name for name in MODULES if any(one.startswith("commands") for one in ours(name))} <= {
        "cli",
        *(name for name in MODULES if name.startswith("commands.")),
    }


def test_no_drawer_for_odds_and_ends():
    assert not {part for name in MODULES for part in name.split(".")} & {"utils", "util", "helpers", "misc", "common"}
