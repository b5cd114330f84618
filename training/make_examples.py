"""Maintainer's script: the example stars that ship with the package, FITS files of known labels and known noise.

    python -m training.make_examples

Run once; users only read the files. Labels, noise and velocities stand in `spectrafm_hf/examples/__init__.py`. The
layouts are those of APOGEE's aspcapStar files (SDSS data model, DR17) and of LAMOST's low-resolution spectra (DR10),
written with astropy, so that our readers read somebody else's FITS. The same stars give the same bytes: noise comes
from a generator of the star's own seed, flux is rounded to 2^-16, and no file carries a date. (On another make of
processor single pixels may end one such step away.)
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from astropy.io import fits

from spectrafm_hf.examples import EXAMPLES, HEADER_WORDS, ExampleStar
from spectrafm_hf.labels import get_label
from spectrafm_hf.spectra import APOGEE_DETECTORS, SPEED_OF_LIGHT, apstar_wavelength
from spectrafm_hf.synthesis.apogee import ApogeeSynthesizer
from spectrafm_hf.synthesis.cannon import CannonSynthesizer

FOLDER = Path(__file__).parents[1] / "spectrafm_hf" / "examples"
ROUND = 2.0**-16
"""Of the continuum: far below the noise, and above what another processor rounds differently."""

BAD_SHARE = 0.01
"""Of the pixels on the detectors: those whose error ASPCAP inflates, beside sky lines and on bad pixels."""
INFLATED = 100.0

LAMOST_AXIS = (3.5682, 1e-4, 3904)
"""COEFF0, COEFF1 (log10 of vacuum Angstrom) and number of pixels."""
LAMOST_RESOLVING_POWER = 1800.0
LAMOST_COUNTS = 1000.0
"""Flux at 5,500 Angstrom, 1e-17 erg s-1 cm-2 Angstrom-1."""


def noise_of(star: ExampleStar) -> np.random.Generator:
    """A generator of the star's own, so that a further star changes no file."""
    return np.random.default_rng(zlib.crc32(star.name.encode()))


def rounded(flux: np.ndarray) -> np.ndarray:
    return np.round(flux / ROUND) * ROUND


def synthetic_flux(star: ExampleStar, synthesizer: ApogeeSynthesizer | CannonSynthesizer) -> np.ndarray:
    """Normalised flux without noise, (n_pixels,) of the synthesizer."""
    told = {**star.labels, **star.nuisances}
    labels = np.array([[told[name] for name in synthesizer.label_names]])
    return rounded(synthesizer(labels)[0].astype(np.float64))


def primary_header(star: ExampleStar, words: Mapping[str, Any]) -> fits.Header:
    """What the layout asks for, then what the star is made of, in words that nobody can overlook."""
    header = fits.Header()
    header.update({word: value for word, value in words.items() if value is not None})
    header["SYNTHET"] = (True, "synthetic: no telescope saw this star")
    for name, value in star.labels.items():
        label = get_label(name)
        header[HEADER_WORDS[name]] = (value, f"{label.symbol} it was made with [{label.unit}]")
    header.add_comment("A synthetic star of known labels, not an observation. It has the layout of")
    header.add_comment(f"a file of {star.layout} so that it can be read as one. Made by spectrafm_hf,")
    header.add_comment("training/make_examples.py.")
    return header


def aspcapstar(star: ExampleStar) -> fits.HDUList:
    """HDU 1 flux, 2 error, 3 the spectrum without noise (where ASPCAP has its best fit), 4 the table."""
    rng = noise_of(star)
    model = np.zeros(apstar_wavelength().size)
    on_detector = np.zeros(model.size, dtype=bool)
    for detector in APOGEE_DETECTORS:
        on_detector[detector] = True
    model[on_detector] = synthetic_flux(star, ApogeeSynthesizer())
    error = np.where(on_detector, 1 / star.snr, 0.0)
    error[on_detector & (rng.random(model.size) < BAD_SHARE)] *= INFLATED
    flux = rounded(model + error * rng.standard_normal(model.size))
    teff, logg, metals = (star.labels[name] for name in ("teff", "logg", "fe_h"))
    param = [teff, logg, 0.1, metals, *(star.nuisances[name] for name in ("c_fe", "n_fe", "alpha_fe")), 0.3, 0.0]
    words = {"OBJ": f"SYNTHETIC-{star.name.upper()}", "SNR": star.snr, "VHELIO": 0.0, "NVISITS": 1}
    axis = {"CRVAL1": 4.179, "CDELT1": 6e-6, "CRPIX1": 1, "CTYPE1": "LOG-LINEAR", "DC-FLAG": 1}
    images = [fits.ImageHDU(values.astype(np.float32), fits.Header(axis)) for values in (flux, error, model)]
    columns = [
        fits.Column("APOGEE_ID", "40A", array=[words["OBJ"]]),
        fits.Column("SNR", "E", array=[star.snr]),
        fits.Column("PARAM", "9E", array=[param]),
        fits.Column("PARAM_COV", "81E", dim="(9,9)", array=[np.zeros((9, 9))]),
        fits.Column("FPARAM", "9E", array=[param]),
        fits.Column("ASPCAPFLAG", "J", array=[0]),
    ]
    return fits.HDUList(
        [fits.PrimaryHDU(header=primary_header(star, words)), *images, fits.BinTableHDU.from_columns(columns)]
    )


def lamost(star: ExampleStar) -> fits.HDUList:
    """One row of FLUX, IVAR, WAVELENGTH, ANDMASK, ORMASK; heliocentric vacuum Angstrom, the redshift in the header."""
    rng = noise_of(star)
    first, step, n_pixels = LAMOST_AXIS
    observed = 10.0 ** (first + step * np.arange(n_pixels))
    z = star.velocity / SPEED_OF_LIGHT
    at_rest = CannonSynthesizer(observed / (1 + z), resolving_power=LAMOST_RESOLVING_POWER)
    continuum = LAMOST_COUNTS * planck(observed, star.labels["teff"]) / planck(np.array([5500.0]), star.labels["teff"])
    error = continuum / star.snr
    flux = rounded(continuum * synthetic_flux(star, at_rest) + error * rng.standard_normal(n_pixels))
    words = {"TELESCOP": "LAMOST", "DESIG": f"SYNTHETIC {star.name.upper()}", "VACUUM": True, "HELIO": True}
    words |= {"COEFF0": first, "COEFF1": step, "Z": round(z, 9), "CLASS": "STAR"}
    words |= {f"SNR{band}": star.snr for band in "UGRIZ"}
    arrays = {"FLUX": flux, "IVAR": error**-2, "WAVELENGTH": observed}
    columns = [fits.Column(name, f"{n_pixels}E", array=values[None]) for name, values in arrays.items()]
    none = np.zeros((1, n_pixels), dtype=np.int16)
    columns += [fits.Column(name, f"{n_pixels}I", array=none) for name in ("ANDMASK", "ORMASK")]
    table = fits.BinTableHDU.from_columns(columns, name="COADD")
    return fits.HDUList([fits.PrimaryHDU(header=primary_header(star, words)), table])


def planck(wavelength: np.ndarray, teff: float) -> np.ndarray:
    """Shape of a black body's flux per Angstrom; wavelength in Angstrom, Teff in K."""
    return wavelength**-5 / np.expm1(1.43878e8 / (wavelength * teff))


def write(star: ExampleStar, folder: Path) -> Path:
    """One star's file; each HDU carries the sum of its data, which our readers check."""
    path = folder / f"{star.name}.fits"
    hdus = aspcapstar(star) if star.layout == "aspcapStar" else lamost(star)
    for hdu in hdus[1:]:
        hdu.add_datasum(when="of the data, which readers check")  # astropy would write the hour here
    hdus.writeto(path, overwrite=True)
    return path


def table() -> str:
    """All stars as the Markdown table of the folder's README."""
    rows = ["| star | what | layout | S/N | " + " | ".join(get_label(name).axis for name in HEADER_WORDS) + " |"]
    rows.append("|" + "---|" * (4 + len(HEADER_WORDS)))
    for star in EXAMPLES.values():
        labels = [f"{star.labels[name]:g}" if name in star.labels else "" for name in HEADER_WORDS]
        rows.append(f"| `{star.name}` | {star.what} | {star.layout} | {star.snr:g} | {' | '.join(labels)} |")
    return "\n".join(rows)


README = """# Example stars

**Synthetic**: no telescope saw them. The synthesizers of this package made them from the labels of the table, and noise
was added. The shipped model learned from the same synthesizers, so it does better on them than on real stars: they show
how things work, not how well.

{table}

```python
import spectrafm_hf
from spectrafm_hf.examples import example

print(spectrafm_hf.predict(example("h-band-red-giant")))
```

The primary header of each file says what it is and what it was made with, too (`SYNTEFF`, `SYNLOGG`, `SYNFE_H`,
`SYNMG_FE`, `SYNO_FE`). Spectra of LAMOST's layout are not at rest; their redshift stands in the header.
`python -m training.make_examples` writes this folder again.
"""


def main(to: Annotated[Path, typer.Option(help="Folder that ships.")] = FOLDER) -> None:
    to.mkdir(parents=True, exist_ok=True)
    for star in EXAMPLES.values():
        path = write(star, to)
        print(f"{path} {path.stat().st_size / 1000:.0f} kB")
    (to / "README.md").write_text(README.format(table=table()), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
