"""Who interrupts a command is told whether its work is lost: a real SIGINT, where the work would have been."""

import signal

import pytest
from typer.testing import CliRunner

from spectrafm_hf import cli

GOES_ON = "interrupted; the same command goes on where it was"
COMMANDS = [
    (["predict", "star.fits"], "sources.read_source", "interrupted"),
    (["predict", "stars", "--output", "labels.fits"], "catalogue.label_survey", GOES_ON),
    (["predict", "stars", "-olabels.fits"], "catalogue.label_survey", GOES_ON),
    (["explain"], "hub.load_pretrained", "interrupted"),
    (["evaluate", "--dataset", "stars"], "labelling.Labeller", "interrupted"),
    (["build", "synthetic", "--output", "stars"], "builders.build.build_dataset", GOES_ON),
    (["pretrain", "recipe.yaml"], "recipe.read_recipe", GOES_ON),
    (["finetune", "--labels", "stars.csv", "--spectra", "stars"], "few_shot_kit.finetune", GOES_ON),
    (["benchmark", "--output", "run"], "benchmark.run_benchmark", GOES_ON),
    (["push", "stars", "--to", "me"], "publishing.publish", "interrupted"),
]


def interrupt(*arguments, **named):
    signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(("command", "work", "said"), COMMANDS)
def test_an_interrupted_command_says_whether_it_goes_on(command, work, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(f"spectrafm_hf.{work}", interrupt)
    monkeypatch.setattr("sys.argv", ["spectrafm", *command])
    result = CliRunner().invoke(cli.app, command)
    assert result.exit_code == 130
    assert result.stderr == f"\n{said}\n"
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130
