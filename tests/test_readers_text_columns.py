"""Columns of text, plain and gzipped."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from spectrafm_hf.readers import text_columns
from spectrafm_hf.readers.fits_file import open_fits
from spectrafm_hf.readers.text_columns import is_ecsv, is_text, read_text_columns

TEXT = b"wavelength[nm] flux\n580 1.0\n590 0.5\n600 1.0\n"


def test_a_gzipped_text_is_the_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(TEXT)
    (tmp_path / "a.dat").write_bytes(gzip.compress(TEXT))  # whatever its suffix
    plain, packed = (read_text_columns(tmp_path / name)[0] for name in ("a.txt", "a.dat"))
    assert is_text(tmp_path / "a.dat")
    assert not is_ecsv(tmp_path / "a.dat")
    assert packed["wavelength"].unit == plain["wavelength"].unit == "nm"
    np.testing.assert_array_equal(packed["flux"], [1.0, 0.5, 1.0])


def test_a_damaged_archive_is_refused(tmp_path, monkeypatch: pytest.MonkeyPatch):
    text = b"wavelength flux\n" + b"".join(b"%d %d\n" % (5000 + i, i * i % 997) for i in range(5000))
    packed = gzip.compress(text)
    path = tmp_path / "a.txt.gz"
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(ValueError, match=r"a\.txt\.gz: is a gzipped text, but unpacking failed"):
        read_text_columns(path)
    path.write_bytes(packed)
    monkeypatch.setattr(text_columns, "LARGEST", 1000)
    with pytest.raises(ValueError, match="is a text of more than"):
        read_text_columns(path)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (gzip.compress(TEXT), "text; columns of numbers are read"),
        (b"<?xml version='1.0'?>\n<VOTABLE version='1.4'>", "a VOTable"),
        (b"<!DOCTYPE html><html>404</html>", "a web page"),
        (b"PK\x03\x04" + bytes(100), "a zip archive; unpack it"),
        (b"BZh91AY" + bytes(100), "a bzip2 archive; unpack it"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "an HDF5 file"),
    ],
)
def test_what_is_no_fits_file_is_called_what_it_is(tmp_path: Path, content: bytes, what: str):
    (tmp_path / "a.fits").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.fits, HDU 0: .*it is no FITS file, but {what}") as caught:
        open_fits(tmp_path / "a.fits")
    assert "truncated" not in str(caught.value)
