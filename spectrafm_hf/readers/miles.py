"""MILES, version 9.1: 984 stars, 3540.5-7409.6 Angstrom, one spectrum per star, labels in one table.

Sources: Sanchez-Blazquez et al. 2006 (MNRAS 371, 703; spectra), Cenarro et al. 2007 (MNRAS 374, 664; labels),
Falcon-Barroso et al. 2011 (A&A 532, A95; final resolution). The table is a compilation of the literature brought to
one scale; it publishes no errors.

Facts about the files, each checked on the copy inside sdss-mangadap 4.5.0:

* linear pixels of 0.9 Angstrom in **air**, **rest frame**: H alpha to H delta of 158 stars (6200-8500 K) lie within
  8 km/s (median; scatter 4 to 11) of their air wavelengths, and vacuum would be 82 km/s off;
* relative flux; zero or negative where nothing was measured (30 stars, up to 38 pixels, mostly at the blue end);
* FWHM 2.50 Angstrom at all wavelengths (Falcon-Barroso et al. 2011; Beifiori et al. 2011, A&A 531, A109, find 2.54);
* star 0970 (M71 X) is set aside in `omit/`: short range, and an artefact at its red end;
* the table prints the number of HD 44691A as `022.`; 0221 is the only number it lacks and the only file without a row.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..spectra import Spectrum, air_to_vacuum
from .linear_fits import read_linear_fits
from .published_labels import read_labels
from .star_names import normalise_star_name

PARAMETER_FILE = "paramsMILES_v9.1.txt"
SPECTRUM_FILE = "MILES_res2.50_star_m{number}V.fits"
_HEADER_LINES = 3
_TITLES = ("Name", "MILES", "CaT", "SpT", "Teff", "log g", "[Fe/H]", "Refs", "Libraries")
_NUMBER = re.compile(r"m(\d{4})V")
_MISPRINTED_NUMBERS = {"022.": "0221"}


def read_miles_table(path: Path) -> dict[str, dict[str, str]]:
    """Read the parameter table, which is fixed-width: names hold blanks, and spectral types may be blank.

    Each field runs from the first letter of its title to the first letter of the next, so the header line says where.

    Returns:
        MILES number (`0001`) -> title -> text as printed, stripped.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The header lacks a title, or a row has no four-digit number or one that came before.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no MILES parameter table at {path}; it lies beside the spectra as {PARAMETER_FILE}.")
    lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    header = lines[0] if lines else ""
    starts = [header.find(title) for title in _TITLES]
    if -1 in starts or starts != sorted(starts):
        raise ValueError(f"{path}: the first line must hold the titles {', '.join(_TITLES)}, got {header!r}.")
    fields = [slice(start, stop) for start, stop in zip(starts, [*starts[1:], None], strict=True)]
    table: dict[str, dict[str, str]] = {}
    for line_number, line in enumerate(lines[_HEADER_LINES:], start=_HEADER_LINES + 1):
        if not line.strip():
            continue
        row = {title: line[field].strip() for title, field in zip(_TITLES, fields, strict=True)}
        number = _MISPRINTED_NUMBERS.get(row["MILES"], row["MILES"])
        if len(number) != 4 or not number.isdigit() or number in table:
            raise ValueError(
                f"{path}, line {line_number}: needs a new four-digit MILES number in columns {fields[1].start + 1}-"
                f"{fields[1].stop}, got {row['MILES']!r}. The table is fixed-width; was it edited?"
            )
        table[number] = row
    return table


def row_of(path: Path) -> dict[str, str]:
    """Row of a spectrum's star in the parameter table beside it.

    Raises:
        FileNotFoundError: There is no table beside the file.
        ValueError: The file's name holds no number of the table's.
    """
    table = read_miles_table(path.parent / PARAMETER_FILE)
    number = _NUMBER.search(path.name)
    if number is None or number[1] not in table:
        raise ValueError(
            f"{path}: a MILES file is called {SPECTRUM_FILE.format(number='<number>')}; its star and labels are "
            f"found in {PARAMETER_FILE} by that number."
        )
    return table[number[1]]


def read_miles_star(path: Path, row: dict[str, str]) -> Spectrum:
    """Read one star.

    Args:
        path: Its FITS file: flux in HDU 0, FWHM (Angstrom) and a linear air-wavelength axis in the header.
        row: Its row of `read_miles_table`.

    Returns:
        4,300 pixels; `bad_pixel` where the flux is not finite, zero or negative.

    Raises:
        FileNotFoundError, ValueError: See `read_linear_fits`.
    """
    spectrum = read_linear_fits(path)
    return Spectrum(
        wavelength=air_to_vacuum(spectrum.wavelength),
        flux=spectrum.flux,
        bad_pixel=~(np.isfinite(spectrum.flux) & (spectrum.flux > 0)),
        star_id=normalise_star_name(row["Name"]),
        survey="miles",
        fwhm=spectrum.header.number("FWHM"),
        labels=read_labels({"teff": row["Teff"], "logg": row["log g"], "fe_h": row["[Fe/H]"]}),
        ids={"miles": row.get("MILES", ""), "published": row["Name"]},
        meta={"file": path.name, "published_name": row["Name"], "spectral_type": row["SpT"]},
    )


def read_miles(folder: Path, progress: bool = False) -> list[Spectrum]:
    """Read the library: every star of the table whose file is there, by MILES number.

    Args:
        folder: Holds `paramsMILES_v9.1.txt` and the FITS files.
        progress: Show a progress bar.

    Raises:
        FileNotFoundError: The folder, its table or all its spectra are missing.
        ValueError: The table or a spectrum cannot be read; the message names the file.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no MILES folder at {folder}; readers.mangadap_wheel.fetch_libraries() fetches it and returns its parent."
        )
    table = read_miles_table(folder / PARAMETER_FILE)
    files = {number: folder / SPECTRUM_FILE.format(number=number) for number in sorted(table)}
    present = {number: path for number, path in files.items() if path.is_file()}
    if not present:
        raise FileNotFoundError(f"{folder} holds the MILES table but no {SPECTRUM_FILE.format(number='????')}.")
    stars = tqdm(present.items(), desc="MILES", unit="star", disable=not progress)
    return [read_miles_star(path, table[number]) for number, path in stars]
