"""Synthetic rows: those of `ApogeeSpectra`, block by block, whatever way they are read."""

import numpy as np
import pytest
from datasets import load_dataset

from spectrafm_hf.builders.build import build_dataset
from spectrafm_hf.builders.grids import read_grid
from spectrafm_hf.builders.synthetic import BLOCK, SyntheticApogee, SyntheticConfig, split_of_block
from spectrafm_hf.labels import LABELS
from spectrafm_hf.spectra import apogee_wavelength
from spectrafm_hf.synthesis.apogee import ApogeeSpectra


def test_rows_are_those_of_the_blocks(tmp_path):
    n = 2 * BLOCK + 40
    built = build_dataset([SyntheticConfig(n=n, seed=3)], tmp_path, progress=False)
    assert dict(built.plans["synthetic"].rows) == {"train": BLOCK + 40, "validation": BLOCK}
    source = ApogeeSpectra(seed=3)
    train = load_dataset(str(tmp_path), "synthetic", split="train", streaming=True).with_format("arrow")
    rows = next(iter(train.iter(n)))
    block = {name: np.concatenate([source.block(0)[name], source.block(2)[name][:40]]) for name in source.block(0)}
    for name in ("flux", "ivar", "bad_pixel"):
        assert np.array_equal(
            np.stack(rows[name].to_numpy(zero_copy_only=False)).astype(block[name].dtype), block[name]
        )
    for number, label in enumerate(LABELS):
        assert np.array_equal(rows[label.name].to_numpy(), block["labels"][:, number])
    for name in set(block) - {"flux", "ivar", "bad_pixel", "labels"}:
        assert np.array_equal(rows[name].to_numpy(), block[name])
    assert rows["object_id"].to_pylist()[-1] == "SYNAPOGEE-3-000000551"
    grid = read_grid(tmp_path)
    assert np.array_equal(grid.wavelength, apogee_wavelength())
    assert grid.resolving_power == 22_500.0


def test_streamed_equals_stored_equals_built(tmp_path):
    n = BLOCK + 30
    build_dataset([SyntheticConfig(n=n)], tmp_path / "built", progress=False)
    builder = SyntheticApogee(n=n, cache_dir=str(tmp_path / "cache"))
    builder.download_and_prepare()
    for split, rows in (("train", BLOCK), ("validation", 30)):
        ways = [
            load_dataset(str(tmp_path / "built"), "synthetic", split=split, streaming=True),
            builder.as_streaming_dataset(split),
            builder.as_dataset(split),
        ]
        tables = [next(iter(way.with_format("arrow").iter(n))) for way in ways]
        assert all(table.num_rows == rows for table in tables)
        assert tables[1].equals(tables[0].cast(tables[1].schema))
        assert tables[2].equals(tables[1])


def test_every_tenth_block_validates():
    assert [block for block in range(25) if split_of_block(block) == "validation"] == [1, 11, 21]
    rows = SyntheticConfig(n=90_000).plan().rows
    assert rows == {"train": 81_040 - 144, "validation": 8_960 + 144}


@pytest.mark.parametrize("told", [{"n": 0}, {"seed": -1}])
def test_nonsense_is_refused(told):
    with pytest.raises(ValueError, match="n must be positive and seed not negative"):
        SyntheticConfig(**told).plan()


def test_stars_without_a_spectrum_are_skipped_and_recorded(monkeypatch):
    class Failing:
        wavelength = ApogeeSpectra(seed=0).wavelength

        def block(self, block_index, stop=256):
            block = ApogeeSpectra(seed=0).block(block_index)
            block["bad_pixel"][[1, 4]] = True
            return block

    monkeypatch.setattr(SyntheticConfig, "source", lambda self: Failing())
    rows = SyntheticConfig(n=6).read(0)
    assert rows.columns["object_id"].tolist() == [f"SYNAPOGEE-0-{row:09d}" for row in (0, 2, 3, 5)]
    assert len(rows.columns["flux"]) == len(rows.columns["teff"]) == 4
    assert [one.object_id[-1] for one in rows.skipped] == ["1", "4"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backend": "magic"}, "backend must be one of response, cannon, synspec"),
        ({"survey": "gaia"}, "survey must be one of apogee"),
        ({"backend": "synspec"}, "needs the folder of a built Synspec"),
        ({"synspec": "x"}, "and no other backend does"),
        ({"metal_poor_share": 2.0}, r"metal_poor_share must lie in \[0, 1\]"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SyntheticConfig(**settings).plan()


def test_the_card_tells_the_backend(tmp_path):
    build_dataset([SyntheticConfig(n=3, backend="cannon")], tmp_path, progress=False)
    card = (tmp_path / "README.md").read_text()
    assert "[Mg/Fe] and [O/Fe] are missing" in card
    assert "small network" not in card


def test_without_the_response_two_labels_are_missing():
    rows = SyntheticConfig(n=20, backend="cannon").read(0)
    assert np.isnan(rows.columns["mg_fe"]).all()
    assert np.isfinite(rows.columns["fe_h"]).all()
