"""Writers of survey files in their real layout, with astropy, so that readers are tested against somebody else's FITS.

Layouts were copied from real files (aspcapStar DR13, apStar DR13 and DR17, apVisit DR17, LAMOST DR1, IRTF) and from the
data models of SDSS (DR17 allStar; mwmStar, mwmVisit, astraStar and astraAllStarASPCAP of DR19) and LAMOST (DR10).
Every writer takes arrays, returns the path, and lets header words be changed, or dropped with None.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

N_PIXELS = 8575
DETECTORS = (slice(246, 3274), slice(3585, 6080), slice(6344, 8335))
STAR = "2M17334253-1654573"
RA, DEC = 263.427217, -16.915936
SDSS_HDUS = ("BOSS/APO", "BOSS/LCO", "APOGEE/APO", "APOGEE/LCO")
BOSS_AXIS = (3.5523, 1e-4, 4648)
"""CRVAL, CDELT (log10 Angstrom) and number of pixels of mwmStar's BOSS spectra."""


def position_of(star_id: str) -> tuple[float, float]:
    """RA, DEC in degrees from a 2MASS name; those of `STAR` for another name."""
    if not star_id.startswith("2M") or len(star_id) != 18:
        return RA, DEC
    h, m, s = int(star_id[2:4]), int(star_id[4:6]), int(star_id[6:10]) / 100
    d, arcmin, arcsec = int(star_id[11:13]), int(star_id[13:15]), int(star_id[15:18]) / 10
    dec = d + arcmin / 60 + arcsec / 3600
    return 15 * (h + m / 60 + s / 3600), -dec if star_id[10] == "-" else dec


def update(header: fits.Header, words: Mapping[str, Any]) -> None:
    """Set words; None drops a word."""
    for word, value in words.items():
        if value is None:
            header.remove(word, ignore_missing=True)
        else:
            header[word] = value


def apstar_axis() -> np.ndarray:
    """Vacuum Angstrom, shape (8575,)."""
    return 10 ** (4.179 + 6e-6 * np.arange(N_PIXELS))


def apogee_arrays(seed: int = 0, error: float = 0.01) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Flux, error and synthetic of a star with five lines; 8,575 pixels, gaps 0 in all three."""
    wavelength = apstar_axis()
    synthetic = np.ones(N_PIXELS)
    for line, depth in ((15335.0, 0.3), (15753.3, 0.4), (15964.9, 0.25), (16200.0, 0.35), (16723.5, 0.5)):
        synthetic -= depth * np.exp(-0.5 * ((wavelength - line) / 0.35) ** 2)
    gap = np.ones(N_PIXELS, dtype=bool)
    for detector in DETECTORS:
        gap[detector] = False
    flux = synthetic + error * np.random.default_rng(seed).standard_normal(N_PIXELS)
    errors = np.full(N_PIXELS, error)
    for array in (flux, errors, synthetic):
        array[gap] = 0.0
    return flux, errors, synthetic


def _log_words(header: fits.Header, words: Mapping[str, Any]) -> None:
    update(header, {"CRVAL1": 4.179, "CDELT1": 6e-6, "CRPIX1": 1, "CTYPE1": "LOG-LINEAR", "DC-FLAG": 1, **words})


def write_aspcapstar(
    path: Path,
    star_id: str = STAR,
    flux: np.ndarray | None = None,
    error: np.ndarray | None = None,
    synthetic: np.ndarray | None = None,
    snr: float = 186.5,
    param: Sequence[float] = (3788.4, 1.08, 0.222, 0.0046, 0.16, 0.32, 0.157, 0.63, 0.0),
    fparam: Sequence[float] = (3788.4, 1.31, 0.222, -0.064, 0.16, 0.32, 0.225, 0.63, 0.0),
    primary: Mapping[str, Any] | None = None,
    axis: Mapping[str, Any] | None = None,
    order: Sequence[int] = (1, 2, 3, 4),
    checksum: bool = False,
) -> Path:
    """HDU 1 flux, 2 error, 3 synthetic, 4 table; `order` shuffles them."""
    own = apogee_arrays()
    arrays = [mine if given is None else given for mine, given in zip(own, (flux, error, synthetic), strict=True)]
    head = fits.PrimaryHDU()
    ra, dec = position_of(star_id)
    words = {"OBJ": star_id, "RA": ra, "DEC": dec, "FIELD": "009+09", "SNR": snr, "VHELIO": -72.95, "NVISITS": 2}
    update(head.header, words | dict(primary or {}))
    hdus: dict[int, Any] = {}
    for number, array in enumerate(arrays, start=1):
        hdus[number] = fits.ImageHDU(np.asarray(array, dtype=np.float32))
        _log_words(hdus[number].header, axis or {})
    columns = [
        fits.Column("APOGEE_ID", "18A", array=[star_id]),
        fits.Column("STARFLAG", "J", array=[0]),
        fits.Column("SNR", "E", array=[snr]),
        fits.Column("PARAM", "9E", array=[param]),
        fits.Column("PARAM_COV", "81E", dim="(9,9)", array=[np.diag([4800.0, 0.0064, *[1e-4] * 7])]),
        fits.Column("FPARAM", "9E", array=[fparam]),
        fits.Column("FPARAM_COV", "81E", dim="(9,9)", array=[np.diag([90.0, 1e-4, *[1e-4] * 7])]),
        fits.Column("PARAMFLAG", "9J", array=[[0] * 9]),
        fits.Column("ASPCAPFLAG", "J", array=[0]),
        fits.Column("ELEM", "26E", array=[[-9999.0] * 26]),
    ]
    hdus[4] = fits.BinTableHDU.from_columns(columns)
    fits.HDUList([head, *(hdus[number] for number in order)]).writeto(path, overwrite=True, checksum=checksum)
    return path


def write_apstar(
    path: Path,
    star_id: str = STAR,
    n_visits: int = 2,
    flux: np.ndarray | None = None,
    error: np.ndarray | None = None,
    bitmask: np.ndarray | None = None,
    release: str = "dr17",
    one_dimensional: bool = False,
    primary: Mapping[str, Any] | None = None,
    axis: Mapping[str, Any] | None = None,
    order: Sequence[int] = (1, 2, 3),
    checksum: bool = False,
) -> Path:
    """Rows: two combined, then the visits (one visit: DR17 leaves row 1 zero, earlier releases are 1-D or have 1 row).

    `flux`, `error`, `bitmask` are those of row 0; row i is (1 + i) times as bright and as noisy.
    """
    own_flux, own_error, _ = apogee_arrays()
    n_rows = n_visits + 2 if n_visits > 1 else 2 if release == "dr17" else 1
    base = [
        1000 * own_flux if flux is None else flux,
        1000 * own_error if error is None else error,
        np.zeros(N_PIXELS) if bitmask is None else bitmask,
    ]
    real, whole = (np.float64, np.int64) if release == "dr17" else (np.float32, np.int16)
    arrays = [np.stack([(1 + row) * array for row in range(n_rows)]).astype(real) for array in base[:2]]
    arrays.append(np.stack([base[2]] * n_rows).astype(whole))
    if n_visits == 1 and n_rows == 2:
        for array in arrays:
            array[1] = 0
    if one_dimensional:
        arrays = [array[0] for array in arrays]
    head = fits.PrimaryHDU()
    ra, dec = position_of(star_id)
    words: dict[str, Any] = {"OBJID": star_id, "RA": ra, "DEC": dec, "SNR": 186.5, "NVISITS": n_visits, "STARFLAG": 0}
    words |= {"VSCATTER": 0.18, "FIELD": "000+02"}
    for visit in range(1, n_visits + 1):
        words |= {f"SFILE{visit}": f"apVisit-{release}-5815-56396-{visit}.fits", f"SNRVIS{visit}": 60.0 + visit}
    update(head.header, words | dict(primary or {}))
    units = ("Flux (10^-17 erg/s/cm^2/Ang)", "Error (10^-17 erg/s/cm^2/Ang)", "Pixel bitmask")
    hdus = {}
    for number, (array, unit) in enumerate(zip(arrays, units, strict=True), start=1):
        hdus[number] = fits.ImageHDU(array)
        _log_words(hdus[number].header, {"BUNIT": unit, **(axis or {})})
    rest = [fits.ImageHDU(np.ones_like(arrays[0])) for _ in range(4)]  # sky, its error, telluric, its error
    everything = [head, *(hdus[number] for number in order), *rest]
    fits.HDUList(everything).writeto(path, overwrite=True, checksum=checksum)
    return path


def write_apvisit(path: Path, star_id: str = STAR) -> Path:
    """Three chips of 4,096 pixels, red to blue, both axes reversed, as observed."""
    head = fits.PrimaryHDU()
    update(head.header, {"OBJID": star_id, "SURVEY": "apogee", "SNR": 89.6, "RA": RA, "DEC": DEC})
    wavelength = np.linspace(16954.8, 15142.7, 3 * 4096).reshape(3, 4096)
    arrays = {
        "Flux (10^-17 erg/s/cm^2/Ang)": np.ones((3, 4096), dtype=np.float32),
        "Flux Error (10^-17 erg/s/cm^2/Ang)": np.full((3, 4096), 0.01, dtype=np.float32),
        "Flag Mask (bitwise)": np.zeros((3, 4096), dtype=np.int16),
        "Wavelength (Ang)": wavelength,
    }
    hdus = [fits.ImageHDU(array, fits.Header({"BUNIT": unit})) for unit, array in arrays.items()]
    fits.HDUList([head, *hdus]).writeto(path, overwrite=True)
    return path


def _table(columns: Mapping[str, Any], n_rows: int) -> fits.BinTableHDU:
    """Columns of numbers, text or arrays per row; the types are those of the arrays."""
    made = []
    for name, values in columns.items():
        array = np.asarray(values)
        if array.dtype.kind in "US":
            width = max(1, array.dtype.itemsize // (4 if array.dtype.kind == "U" else 1))
            made.append(fits.Column(name, f"{width}A", array=array))
            continue
        code = {"f4": "E", "f8": "D", "i2": "I", "i4": "J", "i8": "K", "b1": "L"}[array.dtype.str[1:]]
        repeat = "" if array.ndim == 1 else str(array.shape[1])
        made.append(fits.Column(name, f"{repeat}{code}", array=array if n_rows else None))
    return fits.BinTableHDU.from_columns(made, nrows=n_rows)


def write_mwmstar(
    path: Path,
    spectra: Mapping[str, Mapping[str, np.ndarray]] | None = None,
    sdss_id: int = 103020000,
    apogee_id: str | None = STAR,
    visits: bool = False,
    primary: Mapping[str, Any] | None = None,
    axis: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
    order: Sequence[int] = (0, 1, 2, 3),
    checksum: bool = True,
) -> Path:
    """An mwmStar (or with `visits` mwmVisit) file.

    Args:
        spectra: Name in `SDSS_HDUS` -> `flux`, `ivar`, `pixel_flags` of shape (n_rows, n_pixels), and any more columns;
            HDUs without an entry have no rows, and their DATASUM is made wrong, as in real files.
        extra: More columns for every filled HDU.
    """
    spectra = {"APOGEE/APO": mwm_arrays("APOGEE")} if spectra is None else spectra
    head = fits.PrimaryHDU()
    ra, dec = position_of(apogee_id or "")
    words = {"V_ASTRA": "0.6.0", "SDSS_ID": sdss_id, "APOGEEID": apogee_id or "", "GAIA3_ID": 5860080419780127104}
    update(head.header, words | {"RA": ra, "DEC": dec, "N_BOSS": 1, "N_APOGEE": 2} | dict(primary or {}))
    hdus = []
    for name in (SDSS_HDUS[number] for number in order):
        instrument, observatory = name.split("/")
        crval, cdelt, n_pixels = BOSS_AXIS if instrument == "BOSS" else (4.179, 6e-6, N_PIXELS)
        columns = dict(spectra.get(name, {}))
        n_rows = len(next(iter(columns.values()))) if columns else 0
        wavelength = np.tile(10 ** (crval + cdelt * np.arange(n_pixels)), (n_rows, 1)).astype(np.float32)
        about: dict[str, Any] = {
            "spectrum_pk": np.arange(n_rows),
            "sdss_id": np.full(n_rows, sdss_id),
            "telescope": np.array([{"APO": "apo25m", "LCO": "lco25m"}[observatory]] * n_rows or ["x"], dtype="S6"),
            "snr": np.full(n_rows, 80.0, dtype=np.float32),
            "v_rad": np.full(n_rows, 15.5, dtype=np.float32),
        }
        if visits:
            about |= {"mjd": 58150 + np.arange(n_rows, dtype=np.int32)}
        if instrument == "APOGEE":
            about |= {"obj": np.array([apogee_id or ""] * n_rows or ["x"], dtype="S18")}
        pixels = {"wavelength": wavelength if n_rows else np.zeros((0, 0), np.float32)}
        if not n_rows:
            pixels |= {column: np.zeros((0, 0), np.float32) for column in ("flux", "ivar", "pixel_flags")}
            about = {column: values[:0] for column, values in about.items()}
        hdu = _table(about | pixels | columns | (dict(extra or {}) if n_rows else {}), n_rows)
        log_axis = {"CRVAL": crval, "CDELT": cdelt, "CTYPE": "LOG-LINEAR", "CRPIX": 1, "NPIXELS": n_pixels}
        about_hdu = {"EXTNAME": name, "OBSRVTRY": observatory, "INSTRMNT": instrument}
        update(hdu.header, about_hdu | log_axis | dict(axis or {}))
        hdus.append(hdu)
    fits.HDUList([head, *hdus]).writeto(path, overwrite=True, checksum=checksum)
    if checksum:  # SDSS-V writes empty HDUs with the sum of something else
        raw = path.read_bytes()
        path.write_bytes(raw.replace(b"DATASUM = '0       '", b"DATASUM = '63322194'"))
    return path


def mwm_arrays(instrument: str, n_rows: int = 1) -> dict[str, np.ndarray]:
    """Columns `flux`, `ivar`, `pixel_flags` (float32, as in DR19); row i is (1 + i) times as bright."""
    if instrument == "APOGEE":
        flux, error, _ = apogee_arrays()
    else:
        flux, error = np.ones(BOSS_AXIS[2]), np.full(BOSS_AXIS[2], 0.02)
    with np.errstate(divide="ignore"):
        ivar = np.where(error > 0, error**-2.0, 0.0)
    scale = 1.0 + np.arange(n_rows)[:, None]
    return {
        "flux": (scale * flux).astype(np.float32),
        "ivar": (ivar / scale**2).astype(np.float32),
        "pixel_flags": np.zeros((n_rows, flux.size), dtype=np.float32),
    }


def write_astrastar(path: Path, pipeline: str = "ASPCAP", **changes: Any) -> Path:
    """An astraStar file with one fitted model in APOGEE/APO, normalised if the pipeline does so, and continuum 500."""
    model = apogee_arrays()[2].astype(np.float32)[None]
    continuum = np.full_like(model, 500.0)
    columns = {"model_flux": model if pipeline == "ASPCAP" else model * continuum, "continuum": continuum}
    proof = {"ASPCAP": "model_flux_nd_h", "ThePayne": "rho_fe_h_c12_c13", "SnowWhite": "p_dc_ms"}.get(pipeline)
    if proof is not None:
        columns[proof] = model if pipeline == "ASPCAP" else np.zeros(1, dtype=np.float32)
    return write_mwmstar(path, {"APOGEE/APO": columns}, **changes)


def write_lamost(
    path: Path,
    wavelength: np.ndarray | None = None,
    flux: np.ndarray | None = None,
    ivar: np.ndarray | None = None,
    andmask: np.ndarray | None = None,
    ormask: np.ndarray | None = None,
    z: float | None = -7.138e-05,
    layout: str = "dr1",
    primary: Mapping[str, Any] | None = None,
    checksum: bool = False,
) -> Path:
    """A LAMOST LRS file: `dr1` (5 rows, row 2 continuum-normalised), `dr5` (row 2 wavelength) or `dr10` (a table)."""
    n_pixels = 3904
    axis = 10 ** (3.5682 + 1e-4 * np.arange(n_pixels)) if wavelength is None else wavelength
    flux = np.full(n_pixels, 1200.0) if flux is None else flux
    ivar = np.full(n_pixels, 0.01) if ivar is None else ivar
    bits = [np.zeros(n_pixels) if bitmask is None else bitmask for bitmask in (andmask, ormask)]
    words: dict[str, Any] = {"TELESCOP": "LAMOST", "DESIG": "LAMOST J063715.90+271356.5", "OBJNAME": "258151458599632"}
    words |= {"RA": 99.316263, "DEC": 27.23237, "VACUUM": True, "HELIO": True, "HELIO_RV": -26.4}
    words |= {"COEFF0": 3.5682, "COEFF1": 1e-4, "CRVAL1": 3.5682, "CD1_1": 1e-4, "CRPIX1": 1}
    words |= {"CLASS": "STAR", "SUBCLASS": "F9", "Z": z}
    words |= {f"{'SNR' if layout == 'dr10' else 'SN_'}{band}": 10.0 + i for i, band in enumerate("UGRIZ")}
    head = fits.PrimaryHDU()
    hdus = [head]
    if layout == "dr10":
        words |= {"OBSID": "1007", "UID": "G16768142142341"}
        columns = {"FLUX": flux, "IVAR": ivar, "WAVELENGTH": axis}
        table = {name: np.asarray(array, dtype=np.float32)[None] for name, array in columns.items()}
        table |= {"ANDMASK": bits[0].astype(np.int16)[None], "ORMASK": bits[1].astype(np.int16)[None]}
        hdus.append(_table(table, 1))
        hdus[1].header["EXTNAME"] = "COADD"
    else:
        third = np.asarray(flux) / 1200.0 if layout == "dr1" else axis
        head.data = np.stack([flux, ivar, third, *bits]).astype(np.float32)
        name = "Subcontinuum" if layout == "dr1" else "Wavelength"
        words |= {"SLIT_MOD": "x2/3", "EXTEN0": f"Flux Inverse {name} Andmask Ormask"}
    update(head.header, words | dict(primary or {}))
    fits.HDUList(hdus).writeto(path, overwrite=True, checksum=checksum)
    return path


def write_irtf(
    path: Path,
    star: str = "HD 101501",
    wavelength: np.ndarray | None = None,
    flux: np.ndarray | None = None,
    error: np.ndarray | None = None,
    primary: Mapping[str, Any] | None = None,
    checksum: bool = False,
) -> Path:
    """Three rows: micron, W m-2 micron-1, its error; 0.81 to 4.9 micron."""
    micron = np.geomspace(0.8107, 4.927, 7527) if wavelength is None else wavelength
    flux = 1e-9 * micron**-3 if flux is None else flux
    error = 0.01 * np.abs(flux) if error is None else error
    head = fits.PrimaryHDU(np.stack([micron, flux, error]).astype(np.float32))
    words = {"XUNITS": "um", "YUNITS": "Wm-2um-1", "WAVETYPE": "Vacuum", "OBJECT": star, "SPTYPE": "G8 V", "RV": -10.06}
    update(head.header, words | {"SXD_R": "2000", "LXD_R": "2500"} | dict(primary or {}))
    head.writeto(path, overwrite=True, checksum=checksum)
    return path


def allstar_columns(n_stars: int = 5, seed: int = 0) -> dict[str, np.ndarray]:
    """Columns of DR17's allStar for made-up giants, all good; change what a test needs."""
    rng = np.random.default_rng(seed)
    names = [f"2M{i:08d}+0000{i:03d}" for i in range(n_stars)]
    columns: dict[str, np.ndarray] = {
        "APSTAR_ID": np.array([f"apogee.apo25m.stars.field.{name}" for name in names]),
        "APOGEE_ID": np.array(names),
        "FILE": np.array([f"apStar-dr17-{name}.fits" for name in names]),
        "TELESCOPE": np.array(["apo25m"] * n_stars),
        "FIELD": np.array(["000+02"] * n_stars),
        "RA": rng.uniform(0, 360, n_stars),
        "DEC": rng.uniform(-90, 90, n_stars),
        "SNR": rng.uniform(50, 500, n_stars).astype(np.float32),
        "VSCATTER": rng.uniform(0, 0.5, n_stars).astype(np.float32),
        "NVISITS": np.full(n_stars, 3, dtype=np.int32),
        "STARFLAG": np.zeros(n_stars, dtype=np.int64),
        "ASPCAPFLAG": np.zeros(n_stars, dtype=np.int64),
        "EXTRATARG": np.zeros(n_stars, dtype=np.int32),
        "PARAMFLAG": np.zeros((n_stars, 9), dtype=np.int64),
        "GAIAEDR3_SOURCE_ID": np.arange(n_stars) + 5860080419780127104,
    }
    ranges = {"TEFF": (3800, 5500, 60), "LOGG": (0.5, 4, 0.05), "FE_H": (-2, 0.4, 0.01)}
    ranges |= {"MG_FE": (-0.1, 0.4, 0.02), "O_FE": (-0.1, 0.4, 0.02)}
    for name, (low, high, error) in ranges.items():
        columns[name] = rng.uniform(low, high, n_stars).astype(np.float32)
        columns[f"{name}_ERR"] = np.full(n_stars, error, dtype=np.float32)
        if name not in ("TEFF", "LOGG"):
            columns[f"{name}_FLAG"] = np.zeros(n_stars, dtype=np.int32)
    return columns


def write_allstar(path: Path, columns: Mapping[str, np.ndarray] | None = None, checksum: bool = False) -> Path:
    """A DR17 allStar catalogue: HDU 1, followed by HDU 2 as in the real file."""
    columns = allstar_columns() if columns is None else columns
    table = _table(columns, len(next(iter(columns.values()))))
    fits.HDUList([fits.PrimaryHDU(), table, fits.ImageHDU()]).writeto(path, overwrite=True, checksum=checksum)
    return path


def write_astra_allstar(path: Path, n_stars: int = 4, columns: Mapping[str, np.ndarray] | None = None) -> Path:
    """astraAllStarASPCAP: HDU 1 BOSS (empty), HDU 2 APOGEE; abundances are [X/H]."""
    own: dict[str, np.ndarray] = {
        "sdss_id": 103020000 + np.arange(n_stars),
        "sdss4_apogee_id": np.array([f"2M{i:08d}-0000{i:03d}" for i in range(n_stars)]),
        "gaia_dr3_source_id": 5860080419780127104 + np.arange(n_stars),
        "ra": np.linspace(10, 20, n_stars).astype(np.float32),
        "dec": np.linspace(-5, 5, n_stars).astype(np.float32),
        "telescope": np.array(["apo25m"] * n_stars),
        "snr": np.full(n_stars, 120.0, dtype=np.float32),
        "std_v_rad": np.full(n_stars, 0.1, dtype=np.float32),
        "n_visits": np.full(n_stars, 3, dtype=np.int32),
        "spectrum_flags": np.zeros(n_stars, dtype=np.int64),
    }
    values = {"teff": (4800.0, 50.0), "logg": (2.5, 0.05), "fe_h": (-0.5, 0.03)}
    values |= {"mg_h": (-0.3, 0.04), "o_h": (-0.35, 0.04)}
    for name, (value, error) in values.items():
        own[name] = np.full(n_stars, value, dtype=np.float32)
        own[f"e_{name}"] = np.full(n_stars, error, dtype=np.float32)
    own |= dict(columns or {})
    boss, apogee = _table({name: array[:0] for name, array in own.items()}, 0), _table(own, n_stars)
    boss.header["INSTRMNT"], apogee.header["INSTRMNT"] = "BOSS", "APOGEE"
    fits.HDUList([fits.PrimaryHDU(), boss, apogee]).writeto(path, overwrite=True, checksum=True)
    return path


# ---------------------------------------------------------------- files of no survey that is read here

SODIUM = (5889.951, 5891.583)
"""Na I D2 in air and in vacuum, Angstrom (NIST)."""


def with_sodium(wavelength: np.ndarray, center: float = SODIUM[0]) -> np.ndarray:
    """A continuum of 1 with one line."""
    return 1 - 0.5 * np.exp(-0.5 * ((wavelength - center) / 1.5) ** 2)


def write_axis(path: Path, first: float, step: float, flux: np.ndarray, **words: Any) -> Path:
    """A 1-D image with CRVAL1, CDELT1 and other words."""
    hdu = fits.PrimaryHDU(flux)
    update(hdu.header, {"CRVAL1": first, "CDELT1": step, "CRPIX1": 1, **words})
    hdu.writeto(path, overwrite=True, checksum=True)
    return path


def write_eso(
    path: Path,
    ucd: str | None = "em.wl;obs.atmos",
    unit: str | None = "angstrom",
    fluxes: Sequence[str] = ("FLUX", "FLUX_REDUCED"),
    main: str = "FLUX",
    utypes: bool = True,
    primary: Mapping[str, Any] | None = None,
    n: int = 400,
) -> Path:
    """An ESO Science Data Product: one row of arrays. The main flux is 1 outside the line, any other 1,000 times that.

    The error of a flux is a hundredth of its continuum, and pixels 3 and 4 are flagged in QUAL.
    """
    axis = 5800.0 + 0.5 * np.arange(n)
    scale = {"angstrom": 1.0, "nm": 0.1, None: 1.0}[unit]
    table = [("WAVE", "D", unit, scale * axis, "spec:Data.SpectralAxis.Value", ucd)]
    for name in fluxes:
        factor = 1.0 if name == main else 1000.0
        units = "erg.cm**(-2).s**(-1).angstrom**(-1)" if name == main else "adu"
        extra = ";meta.main" if name == main else ""
        prefix = "spec" if name == main else "eso"
        flux, error = factor * with_sodium(axis), np.full(n, 0.01 * factor)
        table.append((name, "E", units, flux, f"{prefix}:Data.FluxAxis.Value", f"phot.flux.density;em.wl{extra}"))
        uname, uucd = f"{prefix}:Data.FluxAxis.Accuracy.StatError", f"stat.error;phot.flux.density;em.wl{extra}"
        table.append((name.replace("FLUX", "ERR"), "E", units, error, uname, uucd))
    quality = np.isin(np.arange(n), (3, 4)).astype(np.int32)
    table.append(("QUAL", "J", None, quality, "spec:Data.FluxAxis.Accuracy.QualityStatus", "meta.code.qual"))
    columns = [fits.Column(name, f"{n}{kind}", unit=u, array=array[None]) for name, kind, u, array, _, _ in table]
    hdu = fits.BinTableHDU.from_columns(columns, name="SPECTRUM")
    update(hdu.header, {"VOCLASS": "SPECTRUM V2.0", "VOPUB": "ESO/SAF", "NELEM": n, "APERTURE": 0.0003})
    if utypes:
        for number, (*_, utype, word) in enumerate(table, start=1):
            update(hdu.header, {f"TUTYP{number}": utype, f"TUCD{number}": word})
    head = fits.PrimaryHDU()
    words = {"ORIGIN": "ESO", "TELESCOP": "ESO-VLT-U2", "INSTRUME": "UVES", "OBJECT": "HD 9138", "SNR": 87.5}
    words |= {"PRODCATG": "SCIENCE.SPECTRUM", "SPECSYS": "TOPOCENT", "SPEC_RES": 42310.0, "RA": 22.5464, "DEC": 6.1438}
    update(head.header, words | dict(primary or {}))
    fits.HDUList([head, hdu]).writeto(path, overwrite=True, checksum=True)
    return path


def write_spspec(path: Path, n: int = 3849) -> Path:
    """SDSS's spSpec: rows of flux, continuum-subtracted flux, error, mask and another; a line at `SODIUM` in vacuum."""
    axis = 10 ** (3.58 + 1e-4 * np.arange(n))
    flux = with_sodium(axis, SODIUM[1])
    rows = np.stack([flux, flux - 1, np.full(n, 0.02), np.arange(n) < 3, np.zeros(n)]).astype(np.float32)
    hdu = fits.PrimaryHDU(rows)
    words = {"TELESCOP": "SDSS 2.5-M", "FIBERID": 12, "COEFF0": 3.58, "COEFF1": 1e-4, "CRVAL1": 3.58, "CD1_1": 1e-4}
    update(hdu.header, words | {"CRPIX1": 1, "DC-FLAG": 1, "CTYPE1": "LINEAR", "NAME": "HD 9138"})
    hdu.writeto(path, overwrite=True, checksum=True)
    return path
