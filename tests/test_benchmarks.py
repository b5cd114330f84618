"""The benchmarks of the model run, write what they promise, and never pass one network off as another."""

import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from training.benchmarks import instruments, model, predict


def test_operations_of_the_papers_network_are_counted_right():
    """Matrix products of one context of 512 tokens, forward; worked out by hand."""
    d, n, labels = 256, 512, 5

    def block(queries, size, keys=n + 1):
        attention = 2 * d * d * (2 * queries + 2 * n) + 2 * 2 * queries * keys * d
        return attention + 2 * 2 * queries * d * size

    encoder = block(n, 2048) + block(n, 1024)
    decoder = sum(block(labels, size) for size in (2048, 1024, 512))
    head = 2 * labels * sum(a * b for a, b in ((256, 2048), (2048, 1024), (1024, 512), (512, 256)))
    counted = model.flops(model.inference(model.paper_model("eager"), model.spectra(1), bf16=False))
    embedding = 2 * n * d
    assert counted == pytest.approx(encoder + decoder + head + embedding, rel=1e-3)


def test_the_fastest_step_counts():
    rates = model.best_rates({"nothing": (lambda: None, 1), "work": (lambda: torch.randn(200, 200).svd(), 1)}, 0.02, 2)
    assert rates["nothing"] > 10 * rates["work"] > 0


@pytest.mark.slow
def test_instruments_are_trained_and_measured(tmp_path, monkeypatch, capsys):
    told = ["instruments", "--output", str(tmp_path / "run"), "--spectra", "32", "--stars", "12"]
    monkeypatch.setattr(sys, "argv", [*told, "--json", str(tmp_path / "a.json"), "--figure", str(tmp_path / "a.png")])
    instruments.main()
    results = json.loads((tmp_path / "a.json").read_text())
    assert set(results["instruments"]) == {"apogee", "miles"}
    assert set(results["instruments"]["apogee"]) == set(instruments.LABELS)
    assert set(results["instruments"]["miles"]) == {"teff", "logg", "fe_h"}
    assert len(results["resolving_power"]) == 7
    for row in results["given"].values():
        assert {"nothing", "teff", "bp_rp", "teff+bp_rp", "model never told"} <= set(row)
    assert (tmp_path / "a.png").stat().st_size > 10_000

    weights = tmp_path / "run" / "told" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    monkeypatch.setattr(sys, "argv", [*told, "--only", "told"])
    instruments.main()
    assert weights.stat().st_mtime_ns == before  # nothing is trained twice
    monkeypatch.setattr(sys, "argv", [*told, "--only", "told", "--learning-rate", "1e-3"])
    with pytest.raises(SystemExit, match=r"0\.0005.*0\.001.*another --output"):
        instruments.main()


def test_a_survey_is_made_longer_by_links(tmp_path):
    built, survey = tmp_path / "built", tmp_path / "survey"
    for name, n_rows in (("synthetic/train-0.parquet", 30), ("synthetic/validation-0.parquet", 10)):
        (built / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"row": list(range(n_rows))}), built / name)
    (built / "wavelength_grid").mkdir()
    (built / "README.md").write_text("---\n---\n")
    survey.mkdir()
    assert predict.repeat(built, survey, 100) == 110  # whole files: 30, 10, 30, 10, 30
    files = sorted(survey.glob("synthetic/train-*.parquet"))
    assert sum(pq.read_metadata(file).num_rows for file in files) == 110
    assert (survey / "synthetic/validation-00000.parquet").is_file()
