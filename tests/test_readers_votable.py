"""Tables of the Virtual Observatory: read as other tables are, and never a door to other files."""

import base64
import gzip
import time
from pathlib import Path

import numpy as np
import pytest
from astropy import units as u
from astropy.io.votable import from_table, writeto
from astropy.table import MaskedColumn, Table
from survey_files import SODIUM, with_sodium

from spectrafm_hf.readers.any_file import read_with_notes
from spectrafm_hf.readers.votable import is_votable

AXIS = 5800.0 + 0.5 * np.arange(400)


def write(path: Path, kind: str = "tabledata", ucd: str | None = None, **columns) -> Path:
    flux = MaskedColumn(with_sodium(AXIS), mask=AXIS < 5801)
    table = Table({"wave": AXIS / 10 * u.nm, "flux": flux, "err": np.full(400, 0.1)} | columns)
    votable = from_table(table)
    for field in votable.get_first_table().fields:
        if field.name == "wave" and ucd is not None:
            field.ucd = ucd
    writeto(votable, str(path), tabledata_format=kind)
    return path


def read(path: Path, **told):
    return read_with_notes(path, default_name="HD 1", **told)


@pytest.mark.parametrize("kind", ["tabledata", "binary", "binary2"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_spectrum(tmp_path, kind, packed):
    path = write(tmp_path / "a.vot", kind)
    if packed:
        path.write_bytes(gzip.compress(path.read_bytes()))
    assert is_votable(path)
    star, _ = read(path, medium="air", velocity=0.0)
    assert np.average(star.wavelength, weights=(1 - star.flux) * ~star.bad_pixel) == pytest.approx(SODIUM[1], abs=0.01)
    assert np.flatnonzero(star.bad_pixel).tolist() == [0, 1]
    assert star.ivar[10] == pytest.approx(100)
    with pytest.raises(ValueError, match="wavelengths come in 'nm', but wavelength_unit='Angstrom' was passed"):
        read(path, medium="air", velocity=0.0, wavelength_unit="Angstrom")
    with pytest.raises(ValueError, match=r"a\.vot: does not tell all that is needed; pass medium=.* and velocity="):
        read(path)


def test_the_medium_that_it_tells(tmp_path):
    star, notes = read(write(tmp_path / "a.vot", ucd="em.wl;obs.atmos"), velocity=0.0)
    assert star.wavelength[0] == pytest.approx(5801.61, abs=0.02)
    assert any("taken to be in air, as its UCD" in sentence for sentence in notes)
    with pytest.raises(ValueError, match=r"b\.vot: .*pass medium='vacuum' or 'air'"):
        read(write(tmp_path / "b.vot"), velocity=0.0)


def test_tables_that_are_no_spectrum(tmp_path):
    table = Table({"ra": [1.0, 2.0], "dec": [1.0, 2.0]})
    writeto(from_table(table), str(tmp_path / "a.vot"))
    with pytest.raises(ValueError, match=r"a\.vot: is a VOTable and needs columns wavelength and flux; it has ra, dec"):
        read(tmp_path / "a.vot", medium="air", velocity=0.0)


def test_no_other_file_is_opened(tmp_path):
    """A STREAM with an address would be fetched, and entities of its own would grow without bound."""
    told = {"medium": "air", "velocity": 0.0}
    secret = tmp_path / "secret"
    secret.write_bytes(base64.b64encode(np.ones(8).tobytes()))
    text = write(tmp_path / "a.vot", "binary").read_text()
    for name, attribute in (("b.vot", f'href="file://{secret}"'), ("c.vot", f'a=">" href="file://{secret}"')):
        (tmp_path / name).write_text(text.replace("<STREAM ", f"<STREAM {attribute} "))
        with pytest.raises(ValueError, match=r"whose data lie in another file \(STREAM href\)"):
            read(tmp_path / name, **told)
    bomb = "<!DOCTYPE x [" + "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 30)) + "]>"
    (tmp_path / "d.vot").write_text(text.replace("?>", "?>" + bomb, 1).replace("nm", "&a29;", 1))
    begun = time.process_time()
    with pytest.raises(ValueError, match="with a document type of its own"):
        read(tmp_path / "d.vot", **told)
    assert time.process_time() - begun < 1.0


def test_damaged_files_are_read_or_refused(tmp_path):
    rng = np.random.default_rng(3)
    pages = [write(tmp_path / kind, kind).read_bytes() for kind in ("tabledata", "binary", "binary2")]
    path = tmp_path / "a.vot"
    outcomes = {"read": 0, "refused": 0}
    for number in range(90):
        raw = bytearray(pages[number % 3])
        if number % 10 == 0:
            raw = raw[: rng.integers(0, len(raw))]
        for position in rng.integers(0, max(1, len(raw)), int(rng.integers(1, 3))) if raw else ():
            raw[position] = rng.choice([*b"0123.<&\0x"])
        path.write_bytes(gzip.compress(bytes(raw), 1) if number % 7 == 0 else bytes(raw))
        begun, complaint = time.process_time(), None
        try:
            read(path, medium="air", velocity=0.0)
        except ValueError as error:
            complaint = str(error)
        assert complaint is None or "a.vot" in complaint, f"{number}: {complaint}"
        outcomes["read" if complaint is None else "refused"] += 1
        assert time.process_time() - begun < 1.0, number
    assert min(outcomes.values()) >= 5
