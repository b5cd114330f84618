"""FITS files against astropy, which wrote them; and files that nobody should believe."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st

from spectrafm_hf.readers.fits_file import MissingKeywordError, TableStream, open_fits


def write_images(path: Path, checksum: bool = False) -> Path:
    hdus = [fits.PrimaryHDU(), fits.ImageHDU(np.arange(3000.0)), fits.ImageHDU(np.ones((2, 5), np.int16))]
    hdus[0].header["OBJECT"] = "O'Neill's star"
    hdus[0].header["SNR"] = 99.5
    fits.HDUList(hdus).writeto(path, checksum=checksum)
    return path


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    dtype=st.sampled_from(["u1", "i2", "i4", "i8", "f4", "f8", "u2", "u4", "i1"]),
    shape=st.lists(st.integers(1, 40), min_size=1, max_size=2),
    seed=st.integers(0, 1000),
)
def test_images_are_those_astropy_wrote(tmp_path_factory, dtype: str, shape: list[int], seed: int) -> None:
    array = (np.random.default_rng(seed).normal(size=shape) * 100).astype(dtype)
    path = tmp_path_factory.mktemp("image") / "a.fits"
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(array)]).writeto(path, checksum=True)
    read = open_fits(path).hdu(1).image()
    np.testing.assert_array_equal(read, array)
    assert read.shape == tuple(shape)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    n_rows=st.integers(0, 7), repeat=st.integers(1, 6), seed=st.integers(0, 1000), text=st.text("AbZ 19", max_size=8)
)
def test_tables_are_those_astropy_wrote(tmp_path_factory, n_rows: int, repeat: int, seed: int, text: str) -> None:
    rng = np.random.default_rng(seed)
    columns = [
        fits.Column("FLUX", f"{repeat}E", array=rng.normal(size=(n_rows, repeat)).astype("f4")),
        fits.Column("wide", "D", array=rng.normal(size=n_rows)),
        fits.Column("Id", "K", array=rng.integers(-(2**60), 2**60, n_rows)),
        fits.Column("unsigned", "J", bzero=2**31, array=rng.integers(0, 2**32, n_rows).astype("u4")),
        fits.Column("name", "8A", array=[text] * n_rows),
        fits.Column("yes", "L", array=rng.random(n_rows) > 0.5),
        fits.Column("bits", "11X", array=rng.random((n_rows, 11)) > 0.5),
    ]
    path = tmp_path_factory.mktemp("table") / "a.fits"
    table = fits.BinTableHDU.from_columns(columns, nrows=n_rows)
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(path, checksum=True)
    hdu = open_fits(path).hdu(1)
    assert hdu.n_rows == n_rows
    for name in ("flux", "WIDE", "id", "unsigned", "yes"):
        np.testing.assert_array_equal(hdu.column(name).reshape(table.data[name].shape), table.data[name])
        assert hdu.column(name).dtype.isnative
    assert list(hdu.column("name")) == [text.rstrip()] * n_rows
    assert hdu.column("wide").dtype == np.dtype(np.float64)


def test_header_words(tmp_path: Path) -> None:
    header = open_fits(write_images(tmp_path / "a.fits")).primary
    assert header.text("OBJECT") == "O'Neill's star"
    assert header.number("SNR") == 99.5
    assert header.get("EXTEND") is True
    assert header.optional_text("ABSENT") is None
    assert "SNR" in header
    assert {"SIMPLE", "OBJECT", "SNR"} <= set(header)
    with pytest.raises(MissingKeywordError, match=r"a\.fits, HDU 0: header word ABSENT must hold a number, got None"):
        header.number("ABSENT")
    with pytest.raises(MissingKeywordError, match="OBJECT must hold a number"):
        header.number("OBJECT")
    with pytest.raises(MissingKeywordError, match="EXTEND must hold a whole number, got True"):
        header.count("EXTEND")
    with pytest.raises(MissingKeywordError, match="SNR must hold text"):
        header.text("SNR")


@pytest.mark.parametrize("value", [-9999.0, -9999.99])
def test_sentinels_in_headers_are_missing(tmp_path: Path, value: float) -> None:
    path = write_images(tmp_path / "a.fits")
    fits.setval(path, "SNR", value=value)
    assert open_fits(path).primary.optional_number("SNR") is None


@pytest.mark.parametrize(
    ("keep", "complaint"),
    [
        (0, r"HDU 0: .*the file is empty \(0 bytes\)"),
        (4, "HDU 0: .*it begins with b'SIMP'"),
        (100, "HDU 0: .*has no END"),
        (2880 + 300, "HDU 1: .*has no END"),
        (2880 * 2 + 5000, "HDU 1: .*24000 bytes and the file holds 5000"),
        (2880 * 11 + 400, "HDU 2: .*has no END"),
        (2880 * 12 + 10, "HDU 2: .*20 bytes and the file holds 10"),
    ],
)
def test_cut_files(tmp_path: Path, keep: int, complaint: str) -> None:
    path = write_images(tmp_path / "a.fits")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"a\.fits, " + complaint + ".*copy or fetch it again"):
        open_fits(path)


def test_data_without_their_last_padding_are_complete(tmp_path: Path) -> None:
    path = write_images(tmp_path / "a.fits")
    path.write_bytes(path.read_bytes()[: 2880 * 12 + 20])
    np.testing.assert_array_equal(open_fits(path).hdu(2).image(), np.ones((2, 5)))


@pytest.mark.parametrize("content", [b"<html>404 Not Found</html>" * 200, b"\x89PNG" + b"\0" * 5000, b"{}", b"S"])
def test_other_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.fits"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.fits, HDU 0: .*no FITS file"):
        open_fits(path)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.fits", tmp_path):
        with pytest.raises(FileNotFoundError, match="no spectrum at"):
            open_fits(path)
        with pytest.raises(FileNotFoundError, match="no spectrum at"):
            TableStream(path)


def test_gzip_whatever_the_suffix(tmp_path: Path) -> None:
    plain = write_images(tmp_path / "a.fits")
    for name in ("b.fits.gz", "b.fits", "b.dat"):
        packed = tmp_path / name
        packed.write_bytes(gzip.compress(plain.read_bytes()))
        np.testing.assert_array_equal(open_fits(packed).hdu(1).image(), np.arange(3000.0))
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"b\.dat, HDU 0: .*unpacking failed"):
        open_fits(packed)


def test_a_flipped_byte_of_a_gzip_is_noticed(tmp_path: Path) -> None:
    raw = bytearray(gzip.compress(write_images(tmp_path / "a.fits").read_bytes()))
    raw[len(raw) // 2] ^= 1
    (tmp_path / "b.gz").write_bytes(raw)
    with pytest.raises(ValueError, match="unpacking failed"):
        open_fits(tmp_path / "b.gz")


def test_checksums_are_verified_on_request_and_by_default(tmp_path: Path) -> None:
    path = write_images(tmp_path / "a.fits", checksum=True)
    assert open_fits(path).hdu(1).image()[7] == 7
    raw = bytearray(path.read_bytes())
    raw[2 * 2880 + 7 * 8 + 1] ^= 0x10  # within pixel 7
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"a\.fits, HDU 1: its data sum to \d+, but.*DATASUM.*pass check_sums=False"):
        open_fits(path).hdu(1).image()
    assert open_fits(path, check_sums=False).hdu(1).image()[7] != 7
    assert open_fits(path).hdu(2).image().sum() == 10  # the other HDU is sound


@pytest.mark.parametrize(
    ("word", "value", "complaint"),
    [
        ("NAXIS1", b"             9999999", "data take 79999992 bytes"),
        ("NAXIS1", b"                  -5", "NAXIS1 holds -5, no whole number"),
        ("BITPIX", b"                 -63", "BITPIX is -63"),
        ("NAXIS ", b"                  77", "announces 77 axes"),
        ("PCOUNT", b"                 1_0", "PCOUNT holds '1_0'"),
    ],
)
def test_damaged_structure(tmp_path: Path, word: str, value: bytes, complaint: str) -> None:
    path = write_images(tmp_path / "a.fits")
    raw = bytearray(path.read_bytes())
    start = raw.index(word.encode().ljust(8) + b"= ", 2880)
    raw[start + 10 : start + 30] = value
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"a\.fits, HDU 1: .*" + complaint):
        open_fits(path)


def test_zeroed_header_block_is_refused(tmp_path: Path) -> None:
    path = write_images(tmp_path / "a.fits")
    raw = bytearray(path.read_bytes())
    raw[400:480] = bytes(80)
    path.write_bytes(raw)
    with pytest.raises(ValueError, match="header holds bytes of value 0"):
        open_fits(path)


def test_junk_after_the_last_hdu(tmp_path: Path) -> None:
    path = write_images(tmp_path / "a.fits")
    raw = path.read_bytes()
    path.write_bytes(raw + bytes(2880))
    assert len(open_fits(path).hdus) == 3
    path.write_bytes(raw + b"junk" * 720)
    with pytest.raises(ValueError, match=r"HDU 3: .*begins with b'junkjunk"):
        open_fits(path)


def test_image_asked_of_a_table_and_the_reverse(tmp_path: Path) -> None:
    path = tmp_path / "a.fits"
    table = fits.BinTableHDU.from_columns([fits.Column("x", "E", array=[1.0])])
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(path)
    file = open_fits(path)
    with pytest.raises(ValueError, match=r"a\.fits, HDU 1: needs a 1-D or 2-D array, got a table"):
        file.hdu(1).image()
    with pytest.raises(ValueError, match="HDU 0: needs a 1-D or 2-D array, got no data"):
        file.hdu(0).image()
    with pytest.raises(ValueError, match="HDU 0: needs a binary table"):
        file.hdu(0).table()
    with pytest.raises(ValueError, match="HDU 1: needs a column 'flux', got x"):
        file.hdu(1).column("flux")
    with pytest.raises(ValueError, match="HDU 4: needs at least 5 HDUs, got 2"):
        file.hdu(4)


def test_compressed_images_are_refused(tmp_path: Path) -> None:
    fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(np.ones((30, 30)))]).writeto(tmp_path / "a.fits")
    with pytest.raises(ValueError, match="HDU 1: needs a 1-D or 2-D array, got a table"):
        open_fits(tmp_path / "a.fits").hdu(1).image()


def test_blank_integers_are_nan(tmp_path: Path) -> None:
    hdu = fits.ImageHDU(np.array([1, 2, -32768], dtype=np.int16))
    hdu.header["BLANK"] = -32768
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(tmp_path / "a.fits")
    np.testing.assert_array_equal(open_fits(tmp_path / "a.fits").hdu(1).image(), [1, 2, np.nan])


@pytest.mark.parametrize("packed", [False, True])
def test_streams_give_the_same_rows(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / "a.fits"
    columns = [fits.Column("x", "J", array=np.arange(1000)), fits.Column("y", "3E", array=np.ones((1000, 3)))]
    hdus = [fits.PrimaryHDU(), fits.ImageHDU(np.ones(900)), fits.BinTableHDU.from_columns(columns), fits.ImageHDU()]
    fits.HDUList(hdus).writeto(path)
    if packed:
        path.write_bytes(gzip.compress(path.read_bytes()))
    stream = TableStream(path)
    assert [hdu.n_rows for hdu in stream.hdus()] == [0, 0, 1000, 0]
    chunks = [hdu.column("x", rows) for hdu, rows in stream.chunks(2, 300)]
    assert [chunk.size for chunk in chunks] == [300, 300, 300, 100]
    np.testing.assert_array_equal(np.concatenate(chunks), np.arange(1000))
    with pytest.raises(ValueError, match="HDU 1: needs a binary table"):
        list(stream.chunks(1, 300))
    with pytest.raises(ValueError, match=r"HDU 7: .*no such HDU"):
        list(stream.chunks(7, 300))
    with pytest.raises(ValueError, match="rows_per_chunk must be at least 1"):
        list(stream.chunks(2, 0))


def test_cut_stream(tmp_path: Path) -> None:
    path = tmp_path / "a.fits"
    table = fits.BinTableHDU.from_columns([fits.Column("x", "J", array=np.arange(5000))])
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(path)
    path.write_bytes(path.read_bytes()[: 2 * 2880 + 4 * 1234])
    with pytest.raises(ValueError, match=r"a\.fits, HDU 1: .*announces 5000 rows and ends after 1234"):
        list(TableStream(path).chunks(1, 100))
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"HDU 1: .*it ends within its header"):
        list(TableStream(path).chunks(1, 100))
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"HDU 0: .*empty"):
        TableStream(path).hdus()
