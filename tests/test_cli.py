"""The command: helps, builds, and says in one sentence what is wrong."""

import json
import re
import shutil
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import run_script
from typer.testing import CliRunner

from spectrafm_hf import cli
from spectrafm_hf.commands.options import reader_options
from spectrafm_hf.examples import example
from spectrafm_hf.labelling import Labeller
from spectrafm_hf.readers.mangadap_wheel import REQUIREMENT


def test_every_command_has_an_example():
    for command in ("synthetic", "apogee-dr17", "mmu-apogee-dr17", "miles", "stelib", "folder"):
        result = CliRunner().invoke(cli.app, ["build", command, "--help"], env={"COLUMNS": "160", "NO_COLOR": "1"})
        assert result.exit_code == 0
        assert f"spectrafm build {command} --output" in result.output
        for option in ("--output", "--num-proc", "--ray"):
            assert option in result.output


def test_build_says_what_it_did(tmp_path):
    arguments = ["build", "synthetic", "--output", str(tmp_path / "syn"), "--n", "300", "--seed", "5"]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    assert "synthetic: train 256, validation 44" in result.output
    assert "built:" in result.output
    assert "was built already" in CliRunner().invoke(cli.app, arguments).output
    assert (tmp_path / "syn/README.md").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["apogee-dr17", "--archive", "/nowhere"], "error: no archive at '/nowhere'"),
        (["folder", "--folder", "/nowhere", "--table", "x.csv"], "error: no folder at '/nowhere'"),
        (["folder", "--folder", ".", "--table", "x.csv", "--option", "air"], "error: --option must be name=value"),
        (["synthetic", "--n", "300", "--shards", "9"], "error: 300 rows make 2 chunks of 256"),
        (["synthetic", "--n", "300", "--output", "/proc/nowhere"], "error: the folder /proc/nowhere cannot be written"),
    ],
)
def test_errors_are_one_sentence_and_two(arguments, message, tmp_path, monkeypatch, capsys):
    output = [] if "--output" in arguments else ["--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["spectrafm", "build", *arguments, *output])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1
    assert told[0].startswith(message)


def test_as_a_command(tmp_path, fresh_processes):
    code, _, complaints = run_script(fresh_processes, "spectrafm_hf.cli", "build", "synthetic", home=tmp_path)
    assert code == 2
    assert "--output" in complaints
    assert "Traceback" not in complaints


def test_reader_options():
    assert reader_options(["medium=air", "file_format=a=b"]) == {"medium": "air", "file_format": "a=b"}
    told = reader_options(["row=2", "velocity=-12.5", "all_pixels=true"])
    assert told == {"row": 2, "velocity": -12.5, "all_pixels": True}
    assert type(told["row"]) is int
    for wrong, message in (
        ("row=two", "a whole number, got 'two'"),
        ("all_pixels=1", "true or false"),
        ("row", "name="),
    ):
        with pytest.raises(ValueError, match=message):
            reader_options([wrong])


# ---------------------------------------------------------------- predict


def asked(*arguments):
    return CliRunner().invoke(cli.app, ["predict", *map(str, arguments)], env={"COLUMNS": "200", "NO_COLOR": "1"})


@pytest.fixture
def broken(tmp_path):
    path = tmp_path / "broken.fits"
    path.write_bytes(b"SIMPLE  =                    T" + b" " * 50)
    return path


def text_with_mask(folder, good=0):
    """A star of columns, its mask in the last one."""
    wavelength = np.arange(5000.0, 5600.0)
    flux = 1 - 0.3 * np.exp(-0.5 * ((wavelength - 5270) / 3) ** 2)
    rows = "\n".join(f"{w:.1f} {f:.4f} {good}" for w, f in zip(wavelength, flux, strict=True))
    path = folder / "star.txt"
    path.write_text(f"wavelength flux mask\n{rows}\n")
    return path


def test_predict_shows_a_table():
    result = asked(example("h-band-red-giant"), "--labels", "teff,fe_h")
    assert result.exit_code == 0, result.output
    assert "value \u00b1 sigma" in result.output
    assert re.search(r"h-band-red-giant\S* +│ +Teff +│ +4[56]\d\d(\.\d)? ± \d+(\.\d)? │ K ", result.output)
    assert "[Fe/H]" in result.output
    assert "log g" not in result.output


def test_predict_says_what_speaks_against_an_answer():
    result = asked(example("optical-solar-like"))
    assert result.exit_code == 0
    assert re.search(r"\[Mg/Fe\] +│ +-?\d\.\d+ ± \d\.\d+ \*", result.output)
    assert "mg_fe, o_fe: learned from 15,152-16,944 vacuum Angstrom only" in result.output
    assert "no answer" in asked(example("optical-solar-like"), "--abstain").output


def test_predict_for_machines_and_a_bad_file_among_good_ones(broken):
    result = asked(example("h-band-dwarf"), broken, "--json")
    assert result.exit_code == 2
    good, bad = (json.loads(line) for line in result.stdout.splitlines())
    assert abs(good["labels"]["teff"]["value"] - 5300) < 5 * good["labels"]["teff"]["sigma"]
    assert good["model"] == "spectrafm-small"
    assert len(good["revision"]) == 64
    assert bad["labels"]["teff"]["value"] is None
    assert bad["flag_names"] == ["unreadable"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.fits"], "error: .*nowhere.fits"),
        (["BROKEN"], "^error: .*broken.fits"),
        (["EXAMPLE", "--labels", "c_fe"], "error: this model predicts teff, .*not c_fe"),
        (["EXAMPLE", "--velocity", "12"], "read at rest already, but a velocity of 12 km/s was told"),
        (["EXAMPLE", "--medium", "water"], "'water' is not one of"),
        (["EXAMPLE", "--bad-pixel", "True"], "'True' is not one of 'True is bad', 'True is good'"),
        (["TEXT"], r"pass medium='vacuum' or 'air' \(--medium\), and velocity= \(--velocity; .*0 if it is at rest"),
        (["TEXT", "--medium", "vacuum", "--velocity", "0"], r"bad_pixel='True is good' \(--bad-pixel\)"),
        ([], "what is to be read"),
    ],
)
def test_predict_ends_with_1_where_nothing_is_read(arguments, message, broken):
    places = {"BROKEN": broken, "EXAMPLE": example("h-band-dwarf"), "TEXT": text_with_mask(broken.parent)}
    result = asked(*(places.get(one, one) for one in arguments))
    assert result.exit_code == 1, result.output
    assert re.search(message, result.output.replace("\n", " "))


@pytest.mark.parametrize("labels", ["teff,fe_h", " teff, fe_h ", ["teff", "fe_h"], ["teff,fe_h"]])
def test_labels_are_names_or_names_joined_by_commas(labels):
    assert Labeller(labels=labels).labels == ["teff", "fe_h"]
    with pytest.raises(ValueError, match=r"this model predicts teff, .*, not tef\."):
        Labeller(labels="tef")


def test_predict_is_told_the_sign_of_a_mask(tmp_path):
    told = ("--medium", "vacuum", "--velocity", "0", "--labels", "teff", "--json")
    for good, sign, other in ((0, "True is bad", "True is good"), (1, "True is good", "True is bad")):
        path = text_with_mask(tmp_path, good)
        result = asked(path, *told, "--bad-pixel", sign)
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["wavelength_range"] == [5000.0, 5599.0]
        assert asked(path, *told, "--bad-pixel", other).exit_code == 1  # all are bad


def test_predict_reads_surveys_mixed_in_a_folder(tmp_path):
    for name in ("h-band-dwarf", "optical-solar-like"):
        shutil.copy(example(name), tmp_path)
    text_with_mask(tmp_path)
    told = ("--medium", "vacuum", "--velocity", "0", "--bad-pixel", "True is bad", "--labels", "teff, logg")
    result = asked(tmp_path, *told)
    assert result.exit_code == 0, result.output
    kept = "its own redshift, 8.006e-05 (24.00 km/s), was used, not a velocity of 0 km/s, which was told"
    assert f"assumed of optical-solar-like.fits: {kept}" in result.output.replace("\n", " ")
    assert asked(example("optical-solar-like"), *told).exit_code == 1
    assert asked(example("optical-solar-like"), "--option", "velocity=0").exit_code == 0


def test_predict_draws(tmp_path, broken):
    asked(example("h-band-red-giant"), "--labels", "fe_h", "--plot", tmp_path / "one.png")
    asked(example("h-band-red-giant"), broken, "--labels", "fe_h", "--plot", tmp_path / "many.png")
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["many-1.png", "one.png"]
    assert (tmp_path / "one.png").read_bytes()[:4] == b"\x89PNG"


def test_predict_has_examples():
    output = asked("--help").output
    assert "spectrafm predict spectra/ --json" in output
    assert "'True is bad' or 'True is good'" in output
    assert "Ends with 0 if all spectra were read, 2 if some were not" in output


def test_predict_writes_a_catalogue_and_does_it_once(tmp_path, broken):
    folder = tmp_path / "survey"
    folder.mkdir()
    for name in ("h-band-red-giant", "h-band-dwarf"):
        (folder / f"{name}.fits").write_bytes(example(name).read_bytes())
    broken.rename(folder / "broken.fits")
    catalogue = tmp_path / "catalogue.parquet"
    result = asked("--input", folder, "--output", catalogue, "--labels", "teff,fe_h")
    assert result.exit_code == 2, result.output  # one cannot be read
    assert "3 spectra" in result.output
    table = pq.read_table(catalogue).to_pydict()
    assert table["name"] == ["broken.fits", "h-band-dwarf.fits", "h-band-red-giant.fits"]
    assert np.isnan(table["teff"][0])
    assert table["teff"][1] > 5000 > table["teff"][2] > 4500
    assert table["flag_names"][0] == "unreadable"
    again = asked("--input", folder, "--output", catalogue, "--labels", "teff,fe_h")
    assert "was there already" in again.output
    assert asked("--output", catalogue).exit_code == 1  # of what?


# ---------------------------------------------------------------- what is here


@pytest.mark.parametrize(
    "command",
    [
        "predict",
        "similar",
        "evaluate",
        "explain",
        "pretrain",
        "finetune",
        "calibrate",
        "benchmark",
        "push",
        "info",
        "cache",
    ],
)
def test_every_help_has_an_example(command):
    said = CliRunner().invoke(cli.app, [command, "--help"], env={"COLUMNS": "160", "NO_COLOR": "1"})
    assert said.exit_code == 0
    assert re.search(rf"Examples?:.*spectrafm {command}", said.output, flags=re.DOTALL)


def test_info_is_that_of_the_checkpoint():
    said = CliRunner().invoke(cli.app, ["info", "--json"])
    told, labeller = json.loads(said.output), Labeller()
    assert told["revision"] == labeller.revision
    assert list(told["labels"]) == labeller.labels
    assert told["n_parameters"] == sum(one.numel() for one in labeller.model.parameters())
    assert told["labels"]["mg_fe"]["learned"] == labeller.extractor.learned_ranges["mg_fe"]
    assert len(told["limits"]) == 2
    spoken = CliRunner().invoke(cli.app, ["info"]).output
    assert "[Mg/Fe]  dex   calibrated   15,152-16,944" in spoken
    assert f"torch {told['versions']['torch']}" in spoken


def test_cache_deletes_what_can_be_fetched_again_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setenv("SPECTRAFM_CACHE", str(tmp_path))
    libraries, own = tmp_path / REQUIREMENT.replace("==", "-"), tmp_path / "spectra"
    for folder in (libraries, own):
        folder.mkdir()
        (folder / "star.fits").write_bytes(b"x" * 2_000_000)
    said = CliRunner().invoke(cli.app, ["cache"]).output
    assert f"4.0 MB  spectral libraries     {tmp_path}" in said
    refused = CliRunner().invoke(cli.app, ["cache", "--clear"], input="n\n").output
    assert f"delete {libraries}?" in refused
    assert libraries.is_dir()
    CliRunner().invoke(cli.app, ["cache", "--clear", "--yes"])
    assert not libraries.exists()
    assert (own / "star.fits").is_file()
    assert "no library to delete" in CliRunner().invoke(cli.app, ["cache", "--clear"]).output


def test_pretrain_runs_a_recipe(tmp_path, monkeypatch, capsys):
    recipe = tmp_path / "stage.yaml"
    recipe.write_text("stage: 1-synthetic\nlearning_rat: 1.0e-3\n")
    monkeypatch.setattr(sys, "argv", ["spectrafm", "pretrain", str(recipe), "--output", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    assert "learning_rate" in capsys.readouterr().err  # the nearest key there is


def test_similar_finds_the_star_itself(tmp_path):
    spectra = tmp_path / "spectra"
    spectra.mkdir()
    for name in ("h-band-red-giant", "h-band-dwarf"):
        shutil.copy(example(name), spectra)
    catalogue = tmp_path / "catalogue.parquet"

    def run(*arguments):
        return CliRunner().invoke(cli.app, [*map(str, arguments)], env={"COLUMNS": "120", "NO_COLOR": "1"})

    said = run("predict", "--input", spectra, "--output", catalogue, "--embeddings")
    assert said.exit_code == 0, said.output
    asked = ("similar", example("h-band-dwarf"), "--catalogue", catalogue)
    said = run(*asked, "-n", "2", "--json")
    assert said.exit_code == 0, said.output
    nearest, other = map(json.loads, said.output.splitlines())
    assert (nearest["neighbour"], other["neighbour"]) == ("h-band-dwarf.fits", "h-band-red-giant.fits")
    assert nearest["distance"] < 0.01 * other["distance"]
    assert nearest["teff"] == pytest.approx(nearest["neighbour_teff"], rel=1e-5)
    text = text_with_mask(tmp_path)
    told = ("similar", text, "--catalogue", catalogue, "-n", "1", "--medium", "vacuum", "--velocity", "0", "--json")
    assert "(--bad-pixel)" in run(*told).output + str(run(*told).exception)
    assert run(*told, "--bad-pixel", "True is bad").exit_code == 0
    shown = run(*asked, "-n", "1")
    assert re.search(r"1 .*h-band-dwarf\.fits .*0\.000", shown.output)
    assert "Teff" in shown.output
    too_many = run(*asked, "-n", "3")
    assert "must be within 1 and 2" in str(too_many.exception)
