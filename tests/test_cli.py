"""The command: helps, builds, and says in one sentence what is wrong."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from spectrafm_hf import cli


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


def test_as_a_command(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "spectrafm_hf.cli", "build", "synthetic"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "--output" in done.stderr
    assert "Traceback" not in done.stderr


def test_reader_options():
    assert cli.reader_options(["medium=air", "file_format=a=b"]) == {"medium": "air", "file_format": "a=b"}
