"""One door for all files: which format is it, and who reads it. The content decides, never the file's name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..spectra import Spectrum
from . import allstar, apstar, aspcapstar, irtf, lamost, miles, mwmstar, stelib
from .fits_file import FitsFile, open_fits
from .fits_spectrum import spectrum_of_fits
from .spectrum_columns import conventions_of, read_told
from .specutils_formats import read_with_specutils
from .votable import is_votable, spectrum_of_votable


@dataclass(frozen=True)
class Format:
    """A format we read ourselves.

    Attributes:
        name: As surveys call it.
        recognise: Whether a file is of this format; looks at headers only.
        read: Its reader.
        options: Names of the reader's arguments that `read_spectrum` may pass on.
        by_path: The reader needs the file's place, not only its content: names or labels lie beside it.
    """

    name: str
    recognise: Callable[[FitsFile], bool]
    read: Callable[..., Spectrum]
    options: frozenset[str]
    by_path: bool = False

    def spectrum_of(self, file: FitsFile, **options: Any) -> Spectrum:
        """Read a file that is of this format.

        Raises:
            ValueError: An option that its reader has no use for, or the reader refuses; the message names the file.
        """
        if unknown := sorted(set(options) - self.options):
            raise ValueError(
                f"{file.path}: is {self.name}, whose reader has no use for {', '.join(unknown)}; it takes "
                f"{', '.join(sorted(self.options)) or 'no options'}."
            )
        try:
            return self.read(file.path if self.by_path else file, **options)
        except ValueError as error:
            if file.path.name in str(error):
                raise
            raise ValueError(f"{file.path}: {error}") from error


def _is_miles(file: FitsFile) -> bool:
    return len(file.hdus[0].shape) == 1 and file.primary.optional_text("TPLLIB") == "MILES"


def _is_stelib(file: FitsFile) -> bool:
    return len(file.hdus[0].shape) == 1 and all(word in file.primary for word in ("TEFF", "LOG_G", "FE_H", "CDELT1"))


def _read_miles(path: Path) -> Spectrum:
    """A MILES file is read with its row of the parameter table, which must lie beside it."""
    row = miles.row_of(path)
    return miles.read_miles_star(path, row)


FORMATS: tuple[Format, ...] = (
    Format(
        "mwmStar / mwmVisit",
        lambda file: mwmstar.is_mwmstar(file) and not mwmstar.is_astrastar(file),
        mwmstar.read_mwmstar,
        frozenset({"instrument", "observatory", "row", "all_pixels"}),
    ),
    Format(
        "astraStar",
        mwmstar.is_astrastar,
        mwmstar.read_astrastar,
        frozenset({"instrument", "observatory", "row", "times_continuum", "all_pixels"}),
    ),
    Format(
        "aspcapStar",
        aspcapstar.is_aspcapstar,
        aspcapstar.read_aspcapstar,
        frozenset({"kind", "labels", "all_pixels"}),
    ),
    Format("apStar / asStar", apstar.is_apstar, apstar.read_apstar, frozenset({"row", "all_pixels"})),
    Format("LAMOST LRS", lamost.is_lamost, lamost.read_lamost, frozenset({"velocity"})),
    Format("IRTF", irtf.is_irtf, irtf.read_irtf, frozenset({"all_pixels"})),
    Format("MILES", _is_miles, _read_miles, frozenset(), by_path=True),
    Format("STELIB", _is_stelib, stelib.read_stelib_star, frozenset(), by_path=True),
)
"""In the order they are tried; no file fits two."""

_OURS = ", ".join(item.name for item in FORMATS)
_TOLD = frozenset({"medium", "frame", "velocity", "star_id", "row", "file_format", "wavelength_unit", "bad_pixel"})
"""Options for a file that is none of ours."""


def recognise(path: Path | str | FitsFile, check_sums: bool = True) -> Format | None:
    """Which of `FORMATS` a file is; None if none.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is a damaged FITS file, or none; or it is a FITS file that holds no spectrum we could read at
            all: an apVisit file, or a catalogue.
    """
    file = open_fits(path, check_sums)
    if apstar.is_apvisit(file):
        raise apstar.refuse_apvisit(file.path)
    found = next((item for item in FORMATS if item.recognise(file)), None)
    if found is None and any(allstar.is_catalogue(hdu) for hdu in file.hdus):
        raise ValueError(f"{file.path}: is a catalogue of many stars, not a spectrum; read it with readers.allstar.")
    return found


def read_spectrum(path: Path | str, check_sums: bool = True, **options: Any) -> Spectrum:
    """Read one spectrum from any file we, or specutils, can read.

    Args:
        path: The file; gzipped FITS and a wrong suffix are no trouble.
        check_sums: Refuse data that do not fit the DATASUM their header carries.
        options: Passed on to the format's reader, e.g. `row`, `instrument`, `kind`, `velocity`, `all_pixels`; for a
            file that is none of ours `medium` (if it does not tell it), `frame` or `velocity`, `star_id`,
            `wavelength_unit`, `bad_pixel` (what True means in a mask), `row`, and `file_format` (then specutils reads
            it, see `read_with_specutils`). An option that the format has no use for is refused rather than ignored.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, no format fits (the message lists what was tried), an option does not apply, or
            the format's reader refuses.
    """
    return read_with_notes(path, check_sums, **options)[0]


def read_with_notes(
    path: Path | str | FitsFile, check_sums: bool = True, default_name: str | None = None, **options: Any
) -> tuple[Spectrum, tuple[str, ...]]:
    """As `read_spectrum`, with what had to be assumed, in sentences.

    Args:
        path, check_sums, options: See there; or a FITS file that is open.
        default_name: Of the star, where neither `star_id` nor the file tells it.
    """
    source, path = path, path.path if isinstance(path, FitsFile) else Path(path)
    file, found = None, None
    try:
        file = open_fits(source, check_sums)
        found = recognise(file)
    except ValueError as error:
        # Not FITS at all: a VOTable is read too, and specutils reads other things, if told what they are.
        if file is not None or "it is no FITS file" not in str(error):
            raise
        if not is_votable(path) and not (options.get("medium") and _starts_like_text(path)):
            raise
    if found is not None:
        assert file is not None, "it was recognised"
        return found.spectrum_of(file, **options), ()
    plain, row = None, options.get("row")
    if "file_format" not in options:
        plain = spectrum_of_votable(path, row) if file is None and is_votable(path) else None
        plain = spectrum_of_fits(file, row) if file is not None else plain
    unknown = sorted(set(options) - _TOLD)
    if unknown or (plain is None and "medium" not in options):
        raise ValueError(
            f"{path}: is none of the formats read here ({_OURS}). specutils may know it: say medium='vacuum' or 'air', "
            "and frame='rest' or velocity= (km/s), because such files do not tell."
            + (f" Options it has no use for: {', '.join(unknown)}." if unknown else "")
        )
    if plain is not None:
        return read_told(path, plain, conventions_of(path, options), options.get("star_id"), default_name)
    if file is not None:
        file.check_sums()  # which astropy, who reads it next, would not
    signs = options.pop("bad_pixel", None)
    notes = () if signs is None else (f"bad_pixel={signs!r} was not used, since specutils knows what its masks mean",)
    try:
        return read_with_specutils(path, **options, default_name=default_name), notes
    except ValueError as error:
        raise ValueError(f"{error} (Tried before: {_OURS}.)") from error


def _starts_like_text(path: Path) -> bool:
    """Whether the file begins with printable ASCII and is no web page (what a failed download leaves)."""
    with path.open("rb") as stream:
        start = stream.read(512)
    return (
        bool(start) and start.isascii() and b"\0" not in start and not start.lstrip().lower().startswith((b"<", b"{"))
    )
