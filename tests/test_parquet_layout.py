"""Shards: the encodings we chose, whole row groups, and all or nothing."""

import errno
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from spectrafm_hf.builders import parquet_layout
from spectrafm_hf.builders.parquet_layout import (
    ROW_GROUP,
    naming_a_full_disk,
    sha256_of,
    whole_file,
    write_json,
    write_shards,
)
from spectrafm_hf.builders.rows import Layout, to_table

LAYOUT = Layout(33)


def table(n_rows, first=0):
    rng = np.random.default_rng(first)
    return to_table(
        {
            "object_id": np.array([f"HD{first + number}" for number in range(n_rows)], dtype=object),
            "survey": "miles",
            "teff": np.arange(first, first + n_rows, dtype=np.float64),
            "flux": rng.normal(size=(n_rows, 33)).astype(np.float32),
            "ivar": np.ones((n_rows, 33), dtype=np.float32),
            "bad_pixel": rng.random((n_rows, 33)) < 0.1,
        },
        LAYOUT,
    )


def write(folder: Path, *sizes):
    pieces, first = [], 0
    for size in sizes:
        pieces.append(("train", table(size, first)))
        first += size
    return write_shards(folder, "miles", {"train": "miles/train.parquet"}, LAYOUT.schema, pieces), pieces


def test_encodings_and_page_index(tmp_path):
    (record,), _ = write(tmp_path, 600)
    metadata = pq.read_metadata(tmp_path / record.path)
    assert [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)] == [256, 256, 88]
    columns = {metadata.row_group(0).column(i).path_in_schema: metadata.row_group(0).column(i) for i in range(20)}
    columns |= {
        metadata.row_group(0).column(i).path_in_schema: metadata.row_group(0).column(i)
        for i in range(metadata.num_columns)
    }
    for name, column in columns.items():
        assert column.compression == "ZSTD"
        assert column.has_offset_index
        assert column.has_column_index
        is_float = name.split(".")[0] in ("ra", "dec", "snr", "flux", "ivar") or column.physical_type == "FLOAT"
        assert ("BYTE_STREAM_SPLIT" in column.encodings) == is_float, name
        assert ("RLE_DICTIONARY" in column.encodings) == (name in ("object_id", "survey")), name
    assert "flux.list.element" in columns
    assert columns["teff"].statistics.max == 255.0  # what filters rely on
    assert b"huggingface" in metadata.metadata


def test_rows_do_not_depend_on_the_pieces_and_bytes_neither(tmp_path):
    (whole,), pieces = write(tmp_path / "a", 700)
    _, cut = write(tmp_path / "b", 1, 255, 300, 0, 144)
    assert pq.read_table(tmp_path / "a" / whole.path).equals(pieces[0][1])
    back = pq.ParquetFile(tmp_path / "b" / whole.path)
    assert [back.metadata.row_group(i).num_rows for i in range(3)] == [256, 256, 188]
    assert back.read()["object_id"].to_pylist() == [name for _, one in cut for name in one["object_id"].to_pylist()]
    (again,), _ = write(tmp_path / "c", 700)
    assert again == whole
    assert whole.rows == 700
    assert whole.sha256 == sha256_of(tmp_path / "c" / again.path)
    assert whole.size == (tmp_path / "c" / again.path).stat().st_size


def test_one_file_per_split_at_once(tmp_path):
    paths = {split: f"x/{split}.parquet" for split in ("train", "test")}
    pieces = [("train", table(10)), ("test", table(5, 100)), ("train", table(3, 10))]
    counted = []
    records = write_shards(tmp_path, "x", paths, LAYOUT.schema, pieces, counted.append)
    assert [(record.split, record.rows) for record in records] == [("train", 13), ("test", 5)]
    assert counted == [10, 5, 3]
    assert pq.read_table(tmp_path / "x/train.parquet")["teff"].to_pylist() == list(range(13))


def test_all_or_nothing(tmp_path):
    def pieces():
        yield "train", table(300)
        raise ValueError("a bad star")

    with pytest.raises(ValueError, match="a bad star"):
        write_shards(tmp_path, "x", {"train": "x/train.parquet"}, LAYOUT.schema, pieces())
    assert list((tmp_path / "x").iterdir()) == []

    write_json(tmp_path / "a.json", {"a": 1})

    def fail():
        with whole_file(tmp_path / "a.json") as partial:
            partial.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert (tmp_path / "a.json").read_text() == '{\n "a": 1\n}\n'
    assert len(list(tmp_path.iterdir())) == 2


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(parquet_layout.pq.ParquetWriter, "write_table", full)
    with pytest.raises(OSError, match=r"no space left in .* run the same command again: finished shards are kept"):
        write(tmp_path, 2 * ROW_GROUP)
    assert list((tmp_path / "miles").iterdir()) == []
    with pytest.raises(OSError, match="another trouble"), naming_a_full_disk(tmp_path):
        raise OSError(errno.EIO, "another trouble")
