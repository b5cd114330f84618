"""Any source of spectra -> `Reading`s: files, folders, arrays, tables, specutils, rows of a dataset, and lists of them.

    for reading in read_source("spectra/"):
        print(reading.name, reading.reason or reading.spectrum.wavelength, reading.assumed)

One bad spectrum is a `Reading` with the reason, never an exception; what nobody told is in `assumed`, in sentences.

**Of a folder** all files below it are spectra but those that are obviously something else: hidden ones, those whose
suffix is in `OTHER_SUFFIXES` (tables of labels, documents, pictures, code, archives), those called README, LICENSE or
the like, and the parameter table of MILES. They come by name, the path relative to the folder.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from .readers.any_file import Format, read_with_notes, recognise
from .readers.fits_file import FitsFile, open_fits
from .readers.in_memory import (
    Conventions,
    Given,
    Measured,
    check_light,
    number_of,
    same_shift,
    same_unit,
    spectrum_of,
    specutils_spectra,
    values_of,
)
from .readers.lamost import is_lamost, own_redshift
from .readers.miles import PARAMETER_FILE
from .readers.text_columns import is_ecsv, is_text, read_text_columns
from .readers.votable import is_votable
from .spectra import SPEED_OF_LIGHT, Spectrum, apogee_wavelength, apstar_wavelength

__all__ = ["Conventions", "Reading", "count_source", "read_source", "spectrum_files"]

OTHER_SUFFIXES = frozenset(
    {
        # tables and documents
        ".csv", ".tsv", ".parquet", ".arrow", ".xlsx", ".xls", ".db", ".sqlite", ".md", ".rst", ".pdf", ".tex",
        ".doc", ".docx", ".html", ".htm", ".xml", ".json", ".jsonl", ".yaml", ".yml", ".toml", ".ini", ".cfg",
        ".log", ".lock",
        # code
        ".py", ".ipynb", ".sh", ".c", ".f", ".f90", ".r", ".jl",
        # pictures
        ".png", ".jpg", ".jpeg", ".gif", ".svg", ".eps", ".ps", ".webp",
        # archives, sums, arrays, weights
        ".zip", ".tar", ".tgz", ".bz2", ".xz", ".7z", ".md5", ".sha1", ".sha256", ".sha1sum", ".sha256sum",
        ".npy", ".npz", ".pkl", ".pickle", ".pt", ".pth", ".safetensors", ".h5", ".hdf5",
        # leftovers
        ".tmp", ".part", ".bak", ".out", ".err", ".bin",
    }
)  # fmt: skip
"""Of files in a folder that are no spectra. A file that is given by its own path is read whatever its suffix."""

OTHER_NAMES = frozenset({"readme", "license", "licence", "copying", "changes", "changelog", "makefile", "notice"})
"""Names of files, in any case, without a suffix or with `.txt`, that are no spectra either."""

BATCH = 64
"""Rows of a dataset unpacked at once."""


@dataclass(frozen=True, eq=False)
class Reading:
    """One spectrum of a source, or why there is none.

    Attributes:
        name: Unique within the source: a path relative to its folder, the star's name, `row 12`.
        spectrum: In vacuum Angstrom at rest; None = it cannot be read.
        reason: Why there is none, in a sentence that says what is needed, what came and what to do.
        assumed: What was taken for true though the source does not tell it, in sentences.
    """

    name: str
    spectrum: Spectrum | None
    reason: str | None = None
    assumed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.spectrum is None) == (self.reason is None):
            raise ValueError(f"{self.name}: needs a spectrum or the reason why there is none, got both or neither.")


@dataclass(frozen=True, eq=False)
class _Item:
    """One spectrum that has not been read yet.

    Attributes:
        name: Its own; None = it has none.
        place: Where it stands in the source, which is unique: `row 12`.
        read: Gives the spectrum and what was assumed, or raises.
    """

    name: str | None
    place: str
    read: Callable[[], tuple[Spectrum, tuple[str, ...]]]


def read_source(source: Any, conventions: Conventions | None = None, several: bool = False) -> Iterator[Reading]:
    """The spectra of a source, one after the other; nothing is read before it is asked for.

    Args:
        source: One of

            * the path of a file that `readers.any_file.read_spectrum` knows, or of a folder of them;
            * arrays: a tuple `(flux, wavelength)`, or a mapping with `flux`, `wavelength` and any of `flux_error`
              (1-sigma), `ivar`, `bad_pixel` (True = do not trust), `mask`, `resolving_power`, `name`, and, for this
              spectrum alone, `medium`, `velocity`, `redshift`, `wavelength_unit`; NumPy's and its masked arrays,
              astropy's Quantity and Masked, lists. A flux of shape (n_spectra, n_pixels) is several spectra;
            * `Spectrum`, `specutils.Spectrum`, SpectrumList, SpectrumCollection;
            * a table of astropy or pandas, or a structured array: a row per pixel if `flux` holds numbers, a spectrum
              per row if it holds arrays;
            * a `Dataset` or `IterableDataset` with columns as `builders` or MultimodalUniverse have them, also its row
              `dataset[0]` and its rows `dataset[:2]`. Where rows share a grid and bring no `wavelength`:
              `{"rows": dataset, "wavelength": grid}`, with the grid of `builders.grids.read_wavelength_grid` (those of
              APOGEE are known);
            * a list, tuple or iterator of any of these.
        conventions: What the user knows of spectra that do not tell it themselves; of those that do, see there.
        several: The source is one of several for which `conventions` were told, as each in a folder or a list is: what
            it tells itself is kept in a sentence where they differ, rather than refused.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: The source holds nothing, or does not tell what is one spectrum.
        TypeError: It is nothing that could hold spectra.
    """
    return _readings(_items(source, conventions or Conventions(), several))


def count_source(source: Any) -> int | None:
    """How many readings `read_source` will give, if that can be told without reading; None = it cannot.

    Raises:
        FileNotFoundError, ValueError, TypeError: As `read_source`.
    """
    if isinstance(source, (str, os.PathLike)):
        path = _existing(source)
        return len(spectrum_files(path)) if path.is_dir() else 1
    if _package(source) == "datasets":
        return len(_split(source)) if hasattr(source, "__len__") else None
    if isinstance(source, Mapping):
        if "rows" in source:
            return count_source(source["rows"])
        if (rows := _rows_in(source)) is not None:
            return rows
        flux = _columns_named(source).get("flux")
        return len(flux) if flux is not None and _holds_arrays(flux) else 1
    if (table := _table(source)) is not None:
        return table.n_rows if _holds_arrays(table.columns.get("flux")) else 1
    if _is_pair(source) or isinstance(source, Spectrum):
        return len(source[0]) if isinstance(source, tuple) and _holds_arrays(source[0]) else 1
    if _package(source) == "specutils" and not isinstance(source, (list, tuple)):
        shape = np.shape(source.flux)
        return int(np.prod(shape[:-1])) if len(shape) > 1 else 1
    if isinstance(source, (list, tuple)):
        counts = [_count_quietly(one) for one in source]
        return None if None in counts else sum(count or 0 for count in counts)
    if isinstance(source, Iterator):
        return None
    raise _no_source(source)


def _count_quietly(source: Any) -> int | None:
    """Of an element of a list, which is one reading if it cannot be read."""
    try:
        return count_source(source)
    except (ValueError, TypeError, OSError):
        return 1


# ---------------------------------------------------------------- readings


def _readings(items: Iterable[_Item]) -> Iterator[Reading]:
    names = _Names()
    for item in items:
        name = names.unique(item.name, item.place)
        try:
            spectrum, assumed = item.read()
        except (ValueError, OSError) as error:
            yield Reading(name, None, str(error).strip() or f"it cannot be read ({type(error).__name__})")
        except Exception as error:  # a survey must not stop at one spectrum, whatever is wrong with it
            yield Reading(name, None, f"reading failed in a way nobody foresaw ({type(error).__name__}: {error}).")
        else:
            yield Reading(name, spectrum, None, assumed)


class _Names:
    """Names that came before, in constant memory (a Bloom filter): one taken for known gets its place added."""

    _BITS = 1 << 27

    def __init__(self) -> None:
        self._seen = bytearray(self._BITS >> 3)

    def _new(self, name: str) -> bool:
        digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        bits = [int.from_bytes(digest[i : i + 4], "big") % self._BITS for i in range(0, 16, 4)]
        new = not all(self._seen[bit >> 3] >> (bit & 7) & 1 for bit in bits)
        for bit in bits:
            self._seen[bit >> 3] |= 1 << (bit & 7)
        return new

    def unique(self, name: str | None, place: str) -> str:
        """The name, with its place where it came before."""
        wanted = (name or "").strip() or place
        if not self._new(wanted):
            wanted = f"{wanted} ({place})"
            while not self._new(wanted):
                wanted += "'"
        return wanted


# ---------------------------------------------------------------- what a source is


def _package(source: Any) -> str:
    """Top package of the source's type, so that nothing need be imported to recognise it."""
    return next((one.__module__.split(".")[0] for one in type(source).__mro__ if one is not object), "")


def _items(source: Any, conventions: Conventions, several: bool) -> Iterator[_Item]:
    """Look at a source and raise at once if it is none."""
    if isinstance(source, (str, os.PathLike)):
        return _file_items(source, conventions, several)
    if isinstance(source, bytes):
        raise TypeError(f"a source must be a path, arrays or a table, got {len(source)} bytes; write them to a file.")
    if isinstance(source, Spectrum):
        return iter([_Item(source.star_id, "spectrum", lambda: _as_it_is(source, conventions, several))])
    if _package(source) == "specutils":
        return _given_items(specutils_spectra(source), conventions, "spectrum")
    if _package(source) == "datasets":
        return _dataset_items(_split(source), None, conventions)
    if isinstance(source, Mapping):
        return _mapping_items(source, conventions)
    if (table := _table(source)) is not None:
        return _table_items(table, conventions)
    if _is_pair(source):
        return _mapping_items(dict(zip(("flux", "wavelength"), _in_order(*source), strict=True)), conventions)
    if isinstance(source, (list, tuple)):
        return _list_items(source, conventions)
    if isinstance(source, Iterator):
        return _each(source, conventions)
    raise _no_source(source)


def _no_source(source: Any) -> TypeError:
    if _is_array(source):
        return TypeError(
            f"one array of shape {np.shape(source)} does not tell flux from wavelength; give (flux, wavelength), or a "
            'mapping {"flux": ..., "wavelength": ...}.'
        )
    return TypeError(
        'a source of spectra is a path, (flux, wavelength), a mapping {"flux": ..., "wavelength": ...}, a '
        f"specutils.Spectrum, a table, a dataset, or a list of them; got {type(source).__name__}."
    )


def _is_array(one: Any) -> bool:
    """Numbers in a row: an array or Quantity of one or two axes, or a list or tuple of numbers."""
    if isinstance(one, (list, tuple)):
        return bool(one) and all(isinstance(number, (int, float, np.number)) or number is None for number in one)
    shape = getattr(one, "shape", None)
    known = hasattr(one, "dtype") and getattr(one.dtype, "names", None) is None
    return known and shape is not None and len(shape) >= 1 and not hasattr(one, "columns")


def _is_pair(source: Any) -> bool:
    """`(flux, wavelength)`: arrays, or lists of arrays for several spectra."""

    def fits(one: Any) -> bool:
        return _is_array(one) or (isinstance(one, list) and bool(one) and all(_is_array(inner) for inner in one))

    return isinstance(source, tuple) and len(source) == 2 and all(fits(one) for one in source)


def _in_order(flux: Any, wavelength: Any) -> tuple[Any, Any]:
    """Refuse `(wavelength, flux)`, as far as it can be told.

    Raises:
        ValueError: The first array runs in one direction, as wavelengths do, and the second does not.
    """

    def runs(values: Any) -> bool:
        try:
            step = np.diff(values_of("flux", values).array)
        except ValueError:  # whose reason its reading will tell
            return False
        return step.ndim == 1 and step.size > 1 and bool((step > 0).all() or (step < 0).all())

    both = _is_array(flux) and _is_array(wavelength) and np.ndim(wavelength) == 1
    if both and runs(flux) and not runs(wavelength):
        raise ValueError(
            "arrays must come as (flux, wavelength), but the first one runs in one direction and the second does not: "
            'are they the wrong way round? If not, name them: {"flux": ..., "wavelength": ...}.'
        )
    return flux, wavelength


def _list_items(source: Sequence[Any], conventions: Conventions) -> Iterator[_Item]:
    if len(source) == 0:
        raise ValueError("the list of spectra is empty.")
    if _is_array(source):
        raise _no_source(source)
    if all(_is_array(one) for one in source):
        raise TypeError(
            f"a {type(source).__name__} of {len(source)} arrays does not tell flux from wavelength; give (flux, "
            'wavelength) as a tuple, or mappings {"flux": ..., "wavelength": ...}, and a list of those for several '
            "spectra."
        )
    return _each(iter(source), conventions)


def _each(source: Iterator[Any], conventions: Conventions) -> Iterator[_Item]:
    """One source after the other; what an element alone would raise is the reason of its reading."""
    for number, one in enumerate(source):
        place = f"spectrum {number}"
        try:
            parts = _items(one, conventions, several=True)
            folder = str(one) if isinstance(one, (str, os.PathLike)) else None
        except (ValueError, TypeError, OSError) as error:
            name = str(one) if isinstance(one, (str, os.PathLike)) else None
            yield _Item(name, place, _raising(error))
            continue
        for part in parts:
            inner = place if part.place == "spectrum" else f"{place}, {part.place}"
            name = part.name
            if folder is not None:  # as it was given; of a folder's files, below the folder
                name = folder if part.place == "spectrum" else str(Path(folder) / (part.name or part.place))
            yield replace(part, name=name, place=inner)


def _raising(error: Exception) -> Callable[[], tuple[Spectrum, tuple[str, ...]]]:
    def read() -> tuple[Spectrum, tuple[str, ...]]:
        raise ValueError(str(error))

    return read


def _as_it_is(spectrum: Spectrum, conventions: Conventions, several: bool) -> tuple[Spectrum, tuple[str, ...]]:
    """A `Spectrum` is in vacuum Angstrom at rest by definition."""
    notes = _own_counts(f"{spectrum.star_id}: is a Spectrum", _Own(), conventions, several)
    return _with_resolving_power(spectrum, conventions, notes)


def _with_resolving_power(
    spectrum: Spectrum, conventions: Conventions, notes: Sequence[str] = ()
) -> tuple[Spectrum, tuple[str, ...]]:
    """The told resolving power, where the spectrum knows none; a word if it knows better.

    Raises:
        ValueError: No pixel can be trusted, or none of those has a positive flux.
    """
    name = spectrum.meta.get("file", spectrum.star_id)
    if spectrum.bad_pixel.all():
        raise ValueError(
            f"{name}: none of its {spectrum.bad_pixel.size} pixels can be trusted: all are flagged, or without a "
            "finite flux or a usable error."
        )
    check_light(f"{name}: the flux", spectrum.flux, spectrum.bad_pixel)
    told, own = conventions.resolving_power, spectrum.resolving_power
    if told is None:
        return spectrum, tuple(notes)
    if own is None and spectrum.fwhm is None:
        return replace(spectrum, resolving_power=float(told)), tuple(notes)
    known = f"{own:.0f}" if own is not None else f"a FWHM of {spectrum.fwhm:g} Angstrom"
    same = own is not None and abs(own / told - 1) < 0.01
    whose = "the file tells" if spectrum.survey == "other" else f"{spectrum.survey} spectra are known to have"
    note = f"resolving_power={told:g} was not used, since {whose} {known}"
    return spectrum, (*notes, *(() if same else (note,)))


# ---------------------------------------------------------------- files


def _existing(source: str | os.PathLike[str]) -> Path:
    path = Path(source)
    if not os.fspath(source):
        raise ValueError("the path of the source is empty; '.' is the folder you are in.")
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {path}; check the path.")
    return path


def _is_other(name: str) -> bool:
    """Whether a file in a folder is obviously no spectrum; see the top of this module."""
    path = Path(name)
    suffix = path.suffix.lower()
    return (
        path.name.startswith((".", "~"))
        or path.name.endswith("~")
        or suffix in OTHER_SUFFIXES
        or (suffix in ("", ".txt") and path.stem.lower() in OTHER_NAMES)
        or path.name == PARAMETER_FILE
    )


def spectrum_files(folder: Path) -> list[str]:
    """Spectra below a folder, relative to it, by name; links to folders are not followed.

    Raises:
        ValueError: There are none; or it is a dataset.
    """
    found, other = [], 0
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__pycache__")
        for name in names:
            if _is_other(name):
                other += 1
            else:
                found.append(os.path.relpath(os.path.join(place, name), folder))
    if found:
        return sorted(found)
    if any(folder.rglob("*.parquet")):
        raise ValueError(
            f"{folder} holds Parquet files: a dataset, not a folder of spectra. Load a split with "
            'datasets.load_dataset and pass that; where rows share a grid {"rows": split, "wavelength": '
            "builders.grids.read_wavelength_grid(folder)}."
        )
    raise ValueError(
        f"{folder} holds no spectrum, but {other} other files (tables, documents, pictures, hidden ones); a file that "
        "is one after all is read if its own path is given."
    )


def _file_items(source: str | os.PathLike[str], conventions: Conventions, several: bool) -> Iterator[_Item]:
    path = _existing(source)
    if not path.is_dir():
        return iter([_Item(path.name, "spectrum", lambda: read_file(path, conventions, several))])

    def items(names: list[str]) -> Iterator[_Item]:
        for number, name in enumerate(names):
            yield _Item(name, f"file {number}", partial(read_file, path / name, conventions, several=True))

    return items(spectrum_files(path))


@dataclass(frozen=True)
class _Own:
    """What a file tells itself: medium and unit of its wavelengths, and its redshift; None = not that.

    `units` are all that are true of it: the header may have the logarithm.
    """

    medium: str = "vacuum"
    units: tuple[str, ...] = ("Angstrom",)
    redshift: float | None = 0.0


_WAVELENGTHS = {
    "IRTF": _Own("vacuum", ("um",)),
    "MILES": _Own("air"),
    "STELIB": _Own("air"),
}
"""Of formats read here, as their files have them; all others are of vacuum, in Angstrom and their logarithm."""


def _own_of(found: Format, file: FitsFile) -> _Own:
    """What a file of a survey tells; all but those of LAMOST are at rest."""
    own = _WAVELENGTHS.get(found.name, _Own(units=("Angstrom", "log10(Angstrom)")))
    return replace(own, redshift=own_redshift(file)) if is_lamost(file) else own


def _own_counts(what: str, own: _Own, told: Conventions, several: bool) -> tuple[str, ...]:
    """Hold what was told against what a spectrum tells itself, which counts: sentences of what differs.

    Args:
        what: The spectrum, for a sentence: `a.fits: is aspcapStar`.
        told: What is None, or the same, is no contradiction.
        several: They were told for several spectra, not for this one.

    Raises:
        ValueError: They differ, and were told for this one alone.
    """
    differing: list[tuple[str, str, str, str]] = []  # its own; what was told; how that, alone, is refused
    if told.medium is not None and told.medium != own.medium:
        its = f"whose wavelengths are in {own.medium}"
        differing.append((f"medium, {own.medium}", f"medium={told.medium!r}", its, "leave that out"))
    if (unit := told.wavelength_unit) is not None and not any(same_unit(unit, one) for one in own.units):
        its = f"whose wavelengths are in {own.units[0]}"
        differing.append((f"unit, {own.units[0]}", f"wavelength_unit={unit!r}", its, "leave that out"))
    if (shift := told.shift) is not None and own.redshift is not None and not same_shift(shift, 1 + own.redshift):
        speed = (shift - 1) * SPEED_OF_LIGHT
        came, z = f"a velocity of {speed:.4g} km/s", f"redshift, {_spoken(own.redshift)}"
        if own.redshift == 0:
            its = "which is read at rest already"
            differing.append(("frame, at rest", came, its, "leave that out, or it would be taken out twice"))
        else:
            instead = f"reader={{'velocity': {speed:.6g}}} (--option velocity={speed:.6g})"
            advice = f"leave that out, or put it in the place of the file's own with {instead}"
            differing.append((z, came, f"which tells its own {z}", advice))
    if differing and not several:
        _, came, its, advice = differing[0]
        raise ValueError(f"{what}, {its}, but {came} was told; {advice}.")
    return tuple(
        f"its own {mine}, was used, not {came}, which was told for those that do not tell theirs"
        for mine, came, *_ in differing
    )


def _spoken(redshift: float) -> str:
    return f"{redshift:.4g} ({redshift * SPEED_OF_LIGHT:.2f} km/s)"


def _told_and_options(
    conventions: Conventions, used: frozenset[str] = frozenset()
) -> tuple[Conventions, dict[str, Any]]:
    """What was told, and options for a reader: those that say what `Conventions` say, and that it has no use for, are
    among the former.

    Raises:
        ValueError: Another frame than `rest`.
    """
    options = dict(conventions.reader)
    same = ("medium", "wavelength_unit", "velocity", "frame", "bad_pixel")
    said = {name: options.pop(name) for name in same if options.get(name) is not None and name not in used}
    if (frame := said.pop("frame", None)) not in (None, "rest"):
        raise ValueError(f"frame must be 'rest', got {frame!r}. Give velocity= for any other frame.")
    if frame == "rest":
        said.setdefault("velocity", 0.0)
    if conventions.shift is not None:
        said.pop("velocity", None)
    said = {name: value for name, value in said.items() if getattr(conventions, name) is None}
    return replace(conventions, reader={}, **said), options


def _velocity(told: Conventions) -> float | None:
    """km/s, of velocity or redshift."""
    return None if told.shift is None else (told.shift - 1.0) * SPEED_OF_LIGHT


def read_file(path: Path, conventions: Conventions, several: bool = False) -> tuple[Spectrum, tuple[str, ...]]:
    """The spectrum of a file, and what was assumed.

    Args:
        conventions: What files do not tell. What one tells itself counts, see there.
        several: They were told for several files, not for this one alone.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be read; or it tells itself otherwise than was told for it alone.
    """
    text = path.is_file() and is_text(path)
    file = None if text else _opened(path, conventions)
    found = None if file is None else recognise(file)
    if found is None or file is None:
        by_columns = text and "file_format" not in conventions.reader and not is_ecsv(path)
        return _read_foreign(path, file, conventions, several, text, by_columns)
    told, options = _told_and_options(conventions, found.options)
    own, replaced = _own_of(found, file), options.get("velocity")
    notes: tuple[str, ...] = ()
    if replaced is not None:
        options["velocity"] = replaced = number_of("velocity", replaced)
        told = replace(told, velocity=None, redshift=None)
        if own.redshift is not None and not same_shift(1 + own.redshift, 1 + replaced / SPEED_OF_LIGHT):
            notes = (
                f"its own redshift, {_spoken(own.redshift)}, was replaced by the reader's option velocity, "
                f"{replaced:.4g} km/s",
            )
    elif own.redshift is None and (velocity := _velocity(told)) is not None:
        options["velocity"] = velocity
    notes += _own_counts(f"{path}: is {found.name}", own, told, several)
    options.pop("check_sums", None)
    return _with_resolving_power(found.spectrum_of(file, **options), told, notes)


def _opened(path: Path, conventions: Conventions) -> FitsFile | None:
    """A FITS file; None = it is none, but a VOTable, or something was told of it that specutils may need.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged; or it is no FITS file, and nothing was told that could help.
    """
    try:
        return open_fits(path, conventions.reader.get("check_sums", True))
    except ValueError as error:
        told, _ = _told_and_options(conventions)
        helps = told.medium or told.wavelength_unit or told.shift is not None
        if "it is no FITS file" in str(error) and (helps or is_votable(path)):
            return None
        raise


def _read_foreign(
    path: Path, file: FitsFile | None, conventions: Conventions, several: bool, text: bool, by_columns: bool
) -> tuple[Spectrum, tuple[str, ...]]:
    """A file of no survey that is known: columns of text, which tell neither medium nor frame, or another, which may
    tell one of them; `file` if it is open."""
    told, options = _told_and_options(conventions)
    if text and (told.medium is None or told.shift is None):
        raise ValueError(
            f"{path}: does not tell whether its wavelengths are in air or vacuum, nor the star's velocity; pass "
            "medium='vacuum' or 'air' (--medium), and velocity= (--velocity; km/s, positive = receding; 0 if it is at "
            f"rest) or redshift=. Got medium={told.medium!r}, velocity={told.velocity!r}, redshift={told.redshift!r}."
        )
    if by_columns:
        if unknown := sorted(set(options) - {"star_id"}):
            raise ValueError(f"{path}: is a text of columns, whose reader has no use for {', '.join(unknown)}.")
        columns, notes = read_text_columns(path)
        given = given_of(columns, "file", told)
        unit = getattr(given.wavelength, "unit", None) or given.told.wavelength_unit
        if unit and several:
            notes += _own_counts(f"{path}: is a text", _Own(str(told.medium), (str(unit),), None), told, several)
            told = replace(told, wavelength_unit=None)
        return spectrum_of(replace(given, notes=(*notes, *given.notes)), told, options.get("star_id") or path.stem)
    more = {name: getattr(told, name) for name in ("medium", "wavelength_unit", "bad_pixel")}
    more |= {"velocity": _velocity(told)}
    options |= {name: value for name, value in more.items() if value is not None}
    spectrum, notes = read_with_notes(path if file is None else file, default_name=path.stem, **options)
    return _with_resolving_power(spectrum, told, notes)


# ---------------------------------------------------------------- arrays and mappings

_NAMES: dict[str, tuple[str, ...]] = {
    "flux": ("flux",),
    "wavelength": ("wavelength", "wave", "lambda", "wavelengths"),
    "flux_error": ("flux_error", "flux_err", "error", "err", "sigma", "uncertainty", "e_flux"),
    "ivar": ("ivar", "flux_ivar"),
    "bad_pixel": ("bad_pixel",),
    "mask": ("mask",),
    "resolving_power": ("resolving_power",),
    "name": ("name", "star_id", "object_id", "star", "object", "id"),
    "medium": ("medium",),
    "velocity": ("velocity",),
    "redshift": ("redshift",),
    "wavelength_unit": ("wavelength_unit",),
    "survey": ("survey",),
    "restframe": ("restframe",),
    "spectrum": ("spectrum",),
}
"""What a column may be called, in any case; the first that is there counts."""

_LOGARITHMIC = ("loglam", "log_wavelength", "loglambda", "log10_wavelength")
"""Names of columns that hold log10 of wavelengths in Angstrom."""

_PER_PIXEL = ("flux", "wavelength", "flux_error", "ivar", "bad_pixel", "mask", "resolving_power")


def _columns_named(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Columns under our names; others are left out. None counts as absent."""
    lower = {str(name).lower(): name for name in reversed(list(columns))}
    found: dict[str, Any] = {}
    for ours, names in _NAMES.items():
        name = next((lower[one] for one in names if one in lower), None)
        if name is not None and columns[name] is not None:
            found[ours] = columns[name]
    if "wavelength" not in found and (name := next((lower[one] for one in _LOGARITHMIC if one in lower), None)):
        found["wavelength"] = columns[name]
        found.setdefault("wavelength_unit", "log10(Angstrom)")
    return found


def _holds_arrays(column: Any) -> bool:
    """Whether a column, or a list, holds an array per element rather than a number."""
    if column is None:
        return False
    shape = getattr(column, "shape", None)
    if shape is not None and len(shape) != 1:
        return len(shape) > 1
    if shape is not None and getattr(getattr(column, "dtype", None), "kind", "O") not in "O":
        return False
    elements = column.to_numpy() if _package(column) == "pandas" else column
    first = next((one for one in elements if one is not None), None)
    return first is not None and not isinstance(first, (str, bytes)) and np.ndim(first) > 0


def _text(value: Any) -> str | None:
    """A name as text; None where there is none."""
    if value is None or value is np.ma.masked or (isinstance(value, (float, np.floating)) and np.isnan(value)):
        return None
    value = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return value.strip() or None


def _number(name: str, value: Any) -> float | None:
    """A finite number, or None."""
    if value is None or value is np.ma.masked:
        return None
    number = number_of(name, value)
    return number if np.isfinite(number) else None


def given_of(columns: Mapping[str, Any], what: str, conventions: Conventions) -> Given:
    """Columns of one spectrum -> `Given`.

    Args:
        columns: Under the names of `_NAMES`; other columns are ignored.
        what: What it came as, for sentences.
        conventions: Says the sign of a mask that has none.

    Raises:
        ValueError: There is no flux or wavelength.
    """
    found, notes, sign = _columns_named(columns), [], None
    nested = found.pop("spectrum", None)
    if isinstance(nested, Mapping):
        inner = _columns_named(nested)
        if "wavelength" in inner:
            inner.setdefault("wavelength_unit", "Angstrom")
        found |= inner
        if "mask" in inner and conventions.bad_pixel is None:
            sign = "True is bad"
            notes.append("True in mask was taken for bad, as MultimodalUniverse has it")
    for name in ("flux", "wavelength"):
        if name not in found:
            raise ValueError(
                f"the {what} needs {name} ({', '.join(_NAMES[name])}); it has "
                f"{', '.join(str(one) for one in columns if columns[one] is not None) or 'nothing'}."
            )
    medium = _text(found.get("medium"))
    told = Conventions(
        medium=medium,  # type: ignore[arg-type]  # which Conventions checks
        velocity=_number("velocity", found.get("velocity")),
        redshift=_number("redshift", found.get("redshift")),
        wavelength_unit=None if hasattr(found["wavelength"], "unit") else _text(found.get("wavelength_unit")),
        bad_pixel=sign,  # type: ignore[arg-type]
    )
    at_rest = found.get("restframe")
    return Given(
        what=what,
        told=told,
        at_rest=None if at_rest is None else bool(at_rest),
        name=_text(found.get("name")),
        survey=_text(found.get("survey")) or "own",
        notes=tuple(notes),
        **{name: found[name] for name in _PER_PIXEL if name in found},
    )


def _given_items(given: Iterable[Given], conventions: Conventions, place: str) -> Iterator[_Item]:
    """Items of spectra in memory; a single one stands at `place`, several are numbered."""
    several = list(given)
    for number, one in enumerate(several):
        here = place if len(several) == 1 else f"row {number}"
        yield _Item(one.name, here, _reader(one, conventions, here))


def _one_item(
    columns: Mapping[str, Any], make: Callable[[], Given], conventions: Conventions, place: str = "spectrum"
) -> _Item:
    """One spectrum in memory; what `make` finds wrong with its columns is the reason of its reading."""
    given: Given | Exception
    try:
        given = make()
    except ValueError as error:
        given = error
    name = given.name if isinstance(given, Given) else _text(_columns_named(columns).get("name"))
    return _Item(name, place, _reader(given, conventions, place))


def _reader(
    given: Given | Exception, conventions: Conventions, place: str
) -> Callable[[], tuple[Spectrum, tuple[str, ...]]]:
    if isinstance(given, Exception):
        return _raising(given)
    return lambda: spectrum_of(given, conventions, place)


def _mapping_items(source: Mapping[str, Any], conventions: Conventions) -> Iterator[_Item]:
    if "rows" in source:
        if unknown := sorted(set(source) - {"rows", "wavelength"}):
            raise ValueError(f"rows go with their common wavelength alone, got {', '.join(unknown)} as well.")
        rows, wavelength = source["rows"], source.get("wavelength")
        if _package(rows) != "datasets":
            raise TypeError(f"rows must be a Dataset or IterableDataset, got {type(rows).__name__}.")
        return _dataset_items(_split(rows), wavelength, conventions)
    if (n_rows := _rows_in(source)) is not None:
        return _row_items(source, n_rows, "slice", conventions)
    known = {name for names in _NAMES.values() for name in names} | set(_LOGARITHMIC)
    found = _columns_named(source)
    if "flux" not in found and "spectrum" not in found:
        raise ValueError(
            f"a mapping needs flux and wavelength, and may have {', '.join([*_PER_PIXEL[2:], 'name'])}; got "
            f"{', '.join(map(str, source)) or 'nothing'}."
        )
    unknown = [str(name) for name in source if str(name).lower() not in known]
    if unknown and "spectrum" not in found and "restframe" not in found:  # rows of a dataset have more columns
        raise ValueError(
            f"a spectrum has no {', '.join(unknown)}; known are flux, wavelength, {', '.join(_PER_PIXEL[2:])}, name, "
            "medium, velocity, redshift and wavelength_unit."
        )
    if _holds_arrays(found.get("flux")):
        return _row_items(found, len(found["flux"]), "array", conventions)
    if "spectrum" in found or "restframe" in found:
        return iter([_one_item(source, lambda: _given_of_row(source, None, conventions), conventions)])
    return iter([_one_item(source, lambda: given_of(source, "array", conventions), conventions)])


def _rows_in(source: Mapping[str, Any]) -> int | None:
    """How many rows of a dataset a mapping of lists holds, as `dataset[:2]` gives it; None = it is no such mapping."""
    found = _columns_named(source)
    if "spectrum" in found:
        nested = found["spectrum"]
        first = next((one for one in nested if one is not None), None) if isinstance(nested, (list, tuple)) else None
        per_row = isinstance(first, Mapping) and _holds_arrays([_columns_named(first).get("flux")])
        return len(nested) if per_row else None
    return len(found["flux"]) if "restframe" in found and _holds_arrays(found.get("flux")) else None


# ---------------------------------------------------------------- tables


@dataclass(frozen=True, eq=False)
class _Table:
    """Columns under our names; numbers, text or an array per row."""

    columns: dict[str, Any]
    n_rows: int
    all_names: tuple[str, ...]


def _table(source: Any) -> _Table | None:
    """A table of astropy or pandas, or a structured array; None = it is none."""
    if hasattr(source, "colnames") and hasattr(source, "columns"):  # astropy
        names: Sequence[Any] = list(source.colnames)
    elif _package(source) == "pandas" and hasattr(source, "columns"):
        names = list(source.columns)
    elif isinstance(source, np.ndarray) and source.dtype.names:
        names = list(source.dtype.names)
        source = source.reshape(-1)
    else:
        return None
    columns = _columns_named({str(name): source[name] for name in names})
    return _Table(columns, len(source), tuple(map(str, names)))


def _table_items(table: _Table, conventions: Conventions) -> Iterator[_Item]:
    columns = table.columns
    for name in ("flux", "wavelength"):
        if name not in columns:
            raise ValueError(
                f"a table of spectra needs a column {name} ({', '.join(_NAMES[name])}); it has "
                f"{', '.join(table.all_names) or 'none'}."
            )
    if table.n_rows == 0:
        raise ValueError("the table of spectra has no row.")
    per_row = {name: _holds_arrays(columns[name]) for name in ("flux", "wavelength")}
    if per_row["flux"] != per_row["wavelength"]:
        raise ValueError(
            "a table has one spectrum (flux and wavelength are numbers, a row per pixel) or one spectrum per row (both "
            f"hold arrays); here {'flux' if per_row['flux'] else 'wavelength'} alone holds arrays. For a common grid "
            'pass {"flux": table["flux"], "wavelength": grid}.'
        )
    if per_row["flux"]:
        return _row_items(columns, table.n_rows, "table", conventions)
    single = dict(columns)
    for name in ("name", "survey", "medium", "velocity", "redshift", "wavelength_unit", "restframe"):
        if name not in single or isinstance(single[name], str):
            continue
        different = {_text(one) for one in single[name]}
        if len(different) > 1:
            if name == "name":
                raise ValueError(
                    f"flux holds numbers, so the table is one spectrum with a row per pixel, but its names are "
                    f"{len(different)} different ones; group it by star and give a list of tables."
                )
            raise ValueError(f"a table that is one spectrum needs one {name} in all its rows, got {len(different)}.")
        single[name] = _entry(single[name], 0)
    return iter([_one_item(single, lambda: given_of(single, "table", conventions), conventions)])


def _row_items(columns: Mapping[str, Any], n_rows: int, what: str, conventions: Conventions) -> Iterator[_Item]:
    """A spectrum per row; a column that is no list is the same for all, and so is a 1-D wavelength.

    Args:
        what: `array`, `table`, or `slice` of a dataset, whose columns have its names.
    """
    if n_rows == 0:
        raise ValueError(f"the {what} of spectra has no row.")
    by_row: dict[str, Any] = {}
    same: dict[str, Any] = {}
    for name, column in columns.items():
        shared = isinstance(column, str) or not hasattr(column, "__len__") or getattr(column, "shape", None) == ()
        if what == "slice":
            is_grid = "wavelength" in _columns_named({name: column}) and not shared
            shared |= is_grid and len(column) != n_rows and not _holds_arrays(column)
        elif name in _PER_PIXEL and what != "table" and not shared and not _holds_arrays(column):
            shared = not (name == "resolving_power" and len(column) == n_rows)
        if not shared and len(column) != n_rows:
            raise ValueError(f"{name} needs one entry for each of {n_rows} spectra, got {len(column)}.")
        (same if shared else by_row)[name] = column

    def items() -> Iterator[_Item]:
        for number in range(n_rows):
            row = same | {name: _entry(column, number) for name, column in by_row.items()}
            place = f"row {number}" if n_rows > 1 else "spectrum"
            make = partial(given_of, row, "row" if what == "table" else what, conventions)
            if what == "slice":
                make = partial(_given_of_row, row, None, conventions)
            yield _one_item(row, make, conventions, place)

    return items()


def _entry(column: Any, number: int) -> Any:
    """One row of a column, with the column's unit."""
    value = column.iloc[number] if hasattr(column, "iloc") else column[number]
    unit = getattr(column, "unit", None)
    return Measured(value, unit) if unit is not None and not hasattr(value, "unit") else value


# ---------------------------------------------------------------- datasets


def _split(source: Any) -> Any:
    """A dataset; of a dictionary of one split, that one.

    Raises:
        ValueError: There are several splits.
    """
    if isinstance(source, Mapping):
        if len(source) != 1:
            raise ValueError(f"the dataset has the splits {', '.join(map(str, source))}; pass one of them.")
        return next(iter(source.values()))
    return source


def _dataset_items(dataset: Any, wavelength: Any, conventions: Conventions) -> Iterator[_Item]:
    names = getattr(dataset, "column_names", None)
    if not hasattr(dataset, "iter"):
        raise TypeError(f"a dataset must be a Dataset or IterableDataset, got {type(dataset).__name__}.")
    if names is not None:
        known = {name for ours in _NAMES.values() for name in ours} | set(_LOGARITHMIC)
        used = [name for name in names if name.lower() in known]
        if not {"flux", "spectrum"} & {name.lower() for name in used}:
            raise ValueError(
                f"a dataset of spectra needs a column flux, or spectrum with flux inside; it has {', '.join(names)}."
            )
        dataset = dataset.select_columns(used)
    if hasattr(dataset, "__len__") and len(dataset) == 0:
        raise ValueError("the dataset has no row.")
    if wavelength is not None:
        wavelength = np.asarray(wavelength, dtype=np.float64)

    def items() -> Iterator[_Item]:
        number = 0
        # As Arrow: the NumPy format would cut wavelengths to float32, Python lists are twenty times slower.
        for table in dataset.with_format("arrow").iter(batch_size=BATCH):
            for row in _rows_of(table):
                make = partial(_given_of_row, row, wavelength, conventions)
                yield _one_item(row, make, conventions, f"row {number}")
                number += 1

    return items()


def _rows_of(table: Any) -> Iterator[dict[str, Any]]:
    """Rows of an Arrow table: arrays of one pixel each as NumPy's, structs as mappings, the rest as Python has it."""
    columns = {name: table.column(name).combine_chunks() for name in table.column_names}
    for number in range(table.num_rows):
        yield {name: _plain(column[number]) for name, column in columns.items()}


def _plain(value: Any) -> Any:
    """An Arrow scalar; null is None, and in an array of numbers NaN."""
    if not value.is_valid:
        return None
    items = getattr(value, "values", None)
    if items is not None and hasattr(items, "to_numpy"):
        if hasattr(items, "field"):  # a list of structs, as older datasets keep pixels
            return {field.name: items.field(field.name).to_numpy(zero_copy_only=False) for field in items.type}
        return items.to_numpy(zero_copy_only=False)
    if isinstance(value, Mapping):
        return {name: _plain(value[name]) for name in value}
    return value.as_py()


OWN_COLUMNS = frozenset({"object_id", "survey", "restframe", "flux", "bad_pixel"})
"""Columns of a dataset that `builders` made: its wavelengths are vacuum Angstrom."""


@cache
def _apogee_grid(n_pixels: int) -> np.ndarray | None:
    """Wavelengths of APOGEE's spectra of so many pixels: those on the detectors, or all of the apStar grid."""
    return next((grid for grid in (apogee_wavelength(), apstar_wavelength()) if grid.size == n_pixels), None)


def _given_of_row(row: Mapping[str, Any], wavelength: np.ndarray | None, conventions: Conventions) -> Given:
    """A row of a dataset -> `Given`, with the wavelengths that all rows share where it brings none.

    Raises:
        ValueError: Nothing says its wavelengths; or see `given_of`.
    """
    ours = set(row) >= OWN_COLUMNS
    if row.get("wavelength") is None and "spectrum" not in row and not set(row) & set(_LOGARITHMIC):
        n_pixels = len(row["flux"]) if row.get("flux") is not None else 0
        named = f"{row.get('survey') or ''} {row.get('object_id') or ''}".lower()
        if wavelength is None and "apogee" in named:  # synthetic stars are called so, too
            wavelength = _apogee_grid(n_pixels)
        if wavelength is None:
            raise ValueError(
                "the row brings no wavelength: all rows of its dataset share a grid. Pass "
                '{"rows": dataset, "wavelength": builders.grids.read_wavelength_grid(repository)}.'
            )
        row = {**row, "wavelength": wavelength}
    if ours and row["restframe"]:  # its velocity is what was taken out, or an error that was put in on purpose
        row = {name: value for name, value in row.items() if name not in ("velocity", "redshift")}
    given = given_of(row, "row", conventions)
    if not ours:
        return given
    if conventions.medium == "air":
        raise ValueError(
            "medium='air' was passed, but the row is of a dataset whose wavelengths are in vacuum; leave it out."
        )
    told = {field.name: getattr(given.told, field.name) for field in fields(Conventions)}
    return replace(given, told=Conventions(**told | {"medium": "vacuum", "wavelength_unit": "Angstrom"}))
