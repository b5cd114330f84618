"""Synspec: teff, logg and six abundances -> LTE spectrum from first principles, for the APOGEE H band.

The Fortran code Synspec 54 (Hubeny & Lanz; Hubeny, Allende Prieto, Osorio & Lanz 2021, arXiv 2104.02829) solves the
radiative transfer through a model atmosphere for every line of a list. `synthesis.synspec_install` builds it; about 5 s
of one core per spectrum, so it makes training sets for `synthesis.response`, not batches.

* Atmospheres: Kurucz models on the C3K grid of C. Conroy, as interpolated by the networks of atmosnet (D. Nidever).
  [Fe/H] scales all metals; the atmosphere's alpha enhancement is the mean of [Mg/Fe] and [O/Fe].
* Lines: linemake (Placco et al. 2021, RNAAS 5, 92): atoms, CO, CN, OH, C2, FeH, and H2O below 3,900 K.
* Solar abundances: Grevesse, Asplund & Sauval 2007 (Space Sci. Rev. 130, 105), as ASPCAP uses.
* Microturbulence: for giants the relation of ASPCAP DR13-DR17 (Holtzman et al. 2018, AJ 156, 125), for dwarfs 1 km/s.
* 12C/13C: 15 for giants, 89 for dwarfs; the lists hold the isotopologues' own gf values, so they are scaled here.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file
from scipy.ndimage import gaussian_filter1d

from ..spectra import APOGEE_RESOLVING_POWER, FWHM_TO_SIGMA, SPEED_OF_LIGHT, apogee_wavelength, rebin
from .dr17_sampler import LABEL_NAMES
from .synthesizer import check_bounds

logger = logging.getLogger(__name__)

BOUNDS: Mapping[str, tuple[float, float]] = {
    "teff": (2500.0, 8000.0),
    "logg": (-1.0, 5.5),
    "fe_h": (-4.0, 1.0),
    "mg_fe": (-0.8, 1.2),
    "o_fe": (-0.8, 1.2),
    "c_fe": (-1.5, 1.0),
    "n_fe": (-1.5, 2.0),
    "alpha_fe": (-0.8, 1.2),
}
"""K and dex: the range of the cool atmospheres, and abundances beyond which they would no longer fit the spectrum."""

WAVELENGTH_RANGE = (15_120.0, 16_990.0)
"""Synthesized, vacuum Angstrom: the APOGEE pixels and room for the wings of a line-spread function."""

CHANGED = {6: "c_fe", 7: "n_fe", 8: "o_fe", 12: "mg_fe"} | dict.fromkeys((14, 16, 20, 22), "alpha_fe")
"""Atomic number -> the label that sets its abundance beside fe_h."""

# log10 N(X)/N(H) + 12 for Z = 1 ... 92 (Grevesse et al. 2007, photosphere; -99 = no stable isotope or unknown).
SOLAR_ABUNDANCES = np.array(
    [12.00, 10.93, 1.05, 1.38, 2.70, 8.39, 7.78, 8.66, 4.56, 7.84, 6.17, 7.53, 6.37, 7.51, 5.36, 7.14, 5.50, 6.18]
    + [5.08, 6.31, 3.17, 4.90, 4.00, 5.64, 5.39, 7.45, 4.92, 6.23, 4.21, 4.60, 2.88, 3.58, 2.29, 3.33, 2.56, 3.25]
    + [2.60, 2.92, 2.21, 2.58, 1.42, 1.92, -99.0, 1.84, 1.12, 1.66, 0.94, 1.77, 1.60, 2.00, 1.00, 2.19, 1.51, 2.24]
    + [1.07, 2.17, 1.13, 1.70, 0.58, 1.45, -99.0, 1.00, 0.52, 1.11, 0.28, 1.14, 0.51, 0.93, 0.00, 1.08, 0.06, 0.88]
    + [-0.17, 1.11, 0.23, 1.25, 1.38, 1.64, 1.01, 1.13, 0.90, 2.00, 0.65]
    + [-99.0] * 6
    + [0.06, -99.0, -0.52]
)

# Elements whose bound-free opacity is taken from model atoms, with (ion, levels, file) per stage; the stage above the
# last is the bare next ion. The set of Allende Prieto et al. 2018 (A&A 618, A25); file names are Synspec's.
MODEL_ATOMS: Mapping[int, tuple[tuple[int, int, str, str], ...]] = {
    1: ((-1, 1, " H 1", "hm.dat"), (0, 9, " H 1", "h1s.dat")),
    2: ((0, 14, "He 1", "he1.dat"), (1, 14, "He 2", "he2.dat")),
    6: ((0, 104, " C 1", "c1.t"), (1, 40, " C 2", "c2.t")),
    7: ((0, 89, " N 1", "n1.t"), (1, 51, " N 2", "n2.t")),
    8: ((0, 54, " O 1", "o1.t"), (1, 74, " O 2", "o2.t")),
    11: ((0, 32, "Na 1", "na1.t"), (1, 8, "Na 2", "na2.t")),
    12: ((0, 71, "Mg 1", "mg1.t"), (1, 31, "Mg 2", "mg2.t")),
    13: ((0, 33, "Al 1", "al1.t"), (1, 81, "Al 2", "al2.t")),
    14: ((0, 57, "Si 1", "si1.t"), (1, 46, "Si 2", "si2.t")),
    20: ((0, 79, "Ca 1", "ca1.t"), (1, 32, "Ca 2", "ca2.t")),
    26: ((0, 49, "Fe 1", "tlusty_fe1_topmod.dat"), (1, 41, "Fe 2", "tlusty_fe2_topmod.dat")),
}
_SYMBOLS = {1: " H", 2: "He", 6: " C", 7: " N", 8: " O", 11: "Na", 12: "Mg", 13: "Al", 14: "Si", 20: "Ca", 26: "Fe"}

COOL_WITH_WATER = 3900.0
"""K: below, water lines matter in the H band."""

GIANT_LOGG = 3.8
"""dex: below, a star is a giant to the microturbulence relation and the isotope ratio."""


class SynspecError(RuntimeError):
    """One spectrum could not be computed; the message holds its labels and Synspec's last words."""


def microturbulence(logg: float) -> float:
    """Microturbulent velocity, km/s, for a surface gravity in dex (Holtzman et al. 2018, AJ 156, 125, for giants)."""
    if logg >= GIANT_LOGG:
        return 1.0
    g = max(logg, 0.0)
    return float(10 ** (0.226 - 0.0228 * g + 0.0297 * g**2 - 0.0113 * g**3))


@dataclass(frozen=True, eq=False)
class ModelAtmosphere:
    """A plane-parallel model atmosphere, from the outside in; arrays of shape (n_depths,).

    Attributes:
        column_mass: g cm^-2.
        temperature: K.
        pressure: Gas pressure, dyn cm^-2.
        electron_density: cm^-3.
    """

    column_mass: np.ndarray
    temperature: np.ndarray
    pressure: np.ndarray
    electron_density: np.ndarray


class KuruczAtmospheres:
    """Networks of atmosnet: (teff K, logg dex, fe_h dex, alpha_fe dex) -> `ModelAtmosphere` of 80 depths.

    Each of four columns is a network of two hidden layers of 300 with leaky ReLU (slope 0.01) whose output is log10.

    Args:
        file: `atmospheres.safetensors` of `synthesis.synspec_install`.
    """

    def __init__(self, file: Path):
        self._layers = {name: tensor.astype(np.float64) for name, tensor in load_file(file).items()}

    def __call__(self, teff: float, logg: float, fe_h: float, alpha_fe: float) -> ModelAtmosphere:
        columns = [
            10.0 ** self._column(k, np.array([teff, logg, fe_h, np.clip(alpha_fe, -0.2, 0.6)])) for k in range(4)
        ]
        return ModelAtmosphere(*columns)

    def _column(self, k: int, labels: np.ndarray) -> np.ndarray:
        low, high = self._layers[f"{k}.x_min"], self._layers[f"{k}.x_max"]
        hidden = (labels - low) / (high - low) - 0.5
        for layer in range(3):
            hidden = self._layers[f"{k}.w_array_{layer}"] @ hidden + self._layers[f"{k}.b_array_{layer}"]
            if layer < 2:
                hidden = np.where(hidden > 0, hidden, 0.01 * hidden)
        return hidden


@dataclass(frozen=True)
class Failure:
    """A spectrum that could not be computed: its labels (K, dex), and why."""

    labels: tuple[float, ...]
    reason: str


@dataclass(frozen=True)
class Synspec:
    """Labels -> normalised flux on the APOGEE grid, by running Synspec.

    Args:
        folder: What `synthesis.synspec_install.install_synspec` made: `synspec54`, `data/`, line lists, atmospheres.
        line_lists: Own line lists in Synspec's format instead: the atomic one first, then molecular ones.
        atmosphere: Own atmospheres instead: (teff, logg, fe_h, alpha_fe) -> `ModelAtmosphere`.
        wavelength: Pixel centres wanted, vacuum Angstrom, within 15,130-16,980.
        resolving_power: Of the Gaussian line-spread function.
        timeout: Seconds after which a run is killed.
        tries: Runs of one spectrum before it counts as a failure.
        processes: Spectra computed at a time; 134 MB each.

    Attributes:
        failures: What could not be computed, in the order it was found out.

    Raises:
        FileNotFoundError: The folder does not hold a built Synspec; says how to build it.
    """

    folder: Path
    line_lists: Sequence[Path] | None = None
    atmosphere: Callable[[float, float, float, float], ModelAtmosphere] | None = None
    wavelength: np.ndarray = field(default_factory=apogee_wavelength)
    resolving_power: float = APOGEE_RESOLVING_POWER
    timeout: float = 300.0
    tries: int = 2
    processes: int = 1
    failures: list[Failure] = field(default_factory=list, init=False)

    label_names = LABEL_NAMES
    bounds = BOUNDS
    star_by_star = True

    def __post_init__(self) -> None:
        if not (self.folder / "synspec54").is_file():
            raise FileNotFoundError(
                f"no Synspec in {self.folder}; build it with `python -m spectrafm_hf.synthesis.synspec_install "
                f"{self.folder}` (needs gfortran)."
            )
        if self.atmosphere is None:
            object.__setattr__(self, "atmosphere", KuruczAtmospheres(self.folder / "atmospheres.safetensors"))
        for path in self.line_lists or ():
            if not Path(path).is_file():
                raise FileNotFoundError(
                    f"no line list at {path}; give files in Synspec's format, the atomic one first."
                )

    def __call__(self, labels: np.ndarray) -> np.ndarray:
        """Normalised flux (n_stars, n_pixels), float32, for labels (n_stars, 8) in the order of `LABEL_NAMES`.

        A spectrum that fails in every try becomes a row of NaN and is recorded in `failures`.

        Raises:
            ValueError: Labels outside `BOUNDS`.
        """
        labels = np.atleast_2d(labels)
        check_bounds(labels, BOUNDS, "Synspec needs", "No atmosphere is at hand beyond.")

        def attempt(row: np.ndarray) -> np.ndarray:
            try:
                return self.one(row)
            except SynspecError as error:
                self.failures.append(Failure(tuple(map(float, row)), str(error)))
                logger.warning("no spectrum: %s", error)
                return np.full(self.wavelength.size, np.nan, dtype=np.float32)

        with ThreadPoolExecutor(self.processes) as pool:  # each thread waits for its own Synspec process
            return np.array(list(pool.map(attempt, labels)), dtype=np.float32).reshape(-1, self.wavelength.size)

    def one(self, labels: np.ndarray) -> np.ndarray:
        """Normalised flux (n_pixels,), float32, of one star."""
        native, flux = self.native(labels)
        # Evenly in ln(wavelength), where a resolving power is one width.
        step = 2e-6
        uniform = np.exp(np.arange(np.log(native[0]), np.log(native[-1]), step))
        sigma = FWHM_TO_SIGMA / self.resolving_power / step
        blurred = gaussian_filter1d(np.interp(uniform, native, flux), sigma, mode="nearest")
        return rebin(uniform, blurred, np.ones(uniform.size, bool), self.wavelength)[0].astype(np.float32)

    def native(self, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Wavelength (vacuum Angstrom) and normalised flux of one star at Synspec's own sampling, before any blur.

        Raises:
            ValueError: Labels outside `BOUNDS`.
            SynspecError: Synspec failed or ran out of time in every try.
        """
        check_bounds(np.atleast_2d(labels), BOUNDS, "Synspec needs", "No atmosphere is at hand beyond.")
        star = dict(zip(LABEL_NAMES, map(float, labels), strict=True))
        problem = ""
        for _ in range(self.tries):
            try:
                return self._run(star)
            except SynspecError as error:
                problem = str(error)
        raise SynspecError(f"{star}: {problem} ({self.tries} tries)")

    def _run(self, star: Mapping[str, float]) -> tuple[np.ndarray, np.ndarray]:
        """One run in a folder of its own: Synspec reads and writes files of fixed names."""
        assert self.atmosphere is not None
        alpha_fe = (star["mg_fe"] + star["o_fe"]) / 2
        atmosphere = self.atmosphere(star["teff"], star["logg"], star["fe_h"], alpha_fe)
        folder = Path(tempfile.mkdtemp(prefix="synspec-"))
        try:
            lists = [Path(path) for path in self.line_lists or self._own_line_lists(star)]
            _write_inputs(folder, star, atmosphere, len(lists))
            (folder / "data").symlink_to((self.folder / "data").resolve())
            for unit, path in zip([19, *range(20, 20 + len(lists))], lists, strict=False):
                (folder / f"fort.{unit}").symlink_to(path.resolve())
            command = [str((self.folder / "synspec54").resolve())]
            with (folder / "fort.5").open() as given, (folder / "log").open("w") as log:
                try:
                    subprocess.run(
                        command, cwd=folder, stdin=given, stdout=log, stderr=log, timeout=self.timeout, check=True,
                        env=os.environ | {"OMP_NUM_THREADS": "1"},
                    )  # fmt: skip
                except subprocess.TimeoutExpired:
                    raise SynspecError(f"no spectrum within {self.timeout:g} s") from None
                except subprocess.CalledProcessError as error:
                    raise SynspecError(f"Synspec ended with status {error.returncode}: {_last_words(folder)}") from None
            return _read_spectrum(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _own_line_lists(self, star: Mapping[str, float]) -> list[Path]:
        kind = "giant" if star["logg"] < GIANT_LOGG else "dwarf"
        lists = [self.folder / "lines_atoms", self.folder / f"lines_molecules_{kind}"]
        return [*lists, self.folder / "lines_water"] if star["teff"] < COOL_WITH_WATER else lists


def _write_inputs(folder: Path, star: Mapping[str, float], atmosphere: ModelAtmosphere, n_lists: int) -> None:
    """Synspec's input files: fort.5 (composition), fort.8 (atmosphere), fort.55 (range and lines), tas (switches)."""
    abundances = SOLAR_ABUNDANCES + np.where(np.arange(1, SOLAR_ABUNDANCES.size + 1) > 2, star["fe_h"], 0.0)
    for atomic_number, label in CHANGED.items():
        abundances[atomic_number - 1] += star[label]
    relative = 10.0 ** (np.maximum(abundances, -5.0) - 12.0)
    lines = [f" {star['teff']:.2f} {star['logg']:.4f}", " T  F", " 'tas'", " 50", f" {relative.size}"]
    lines += [f" {2 if z in MODEL_ATOMS else 1} {value:.6e} 0" for z, value in enumerate(relative, start=1)]
    lines += ["*"] * 4
    for z, stages in MODEL_ATOMS.items():
        for ion, levels, name, file in stages:
            lines.append(f" {z} {ion} {levels} 0 0 {int(ion < 0)} '{name}' 'data/{file}'")
            if ion < 0:
                lines.append(" 0 0 3 0")
        lines.append(f" {z} {stages[-1][0] + 1} 1 1 0 0 '{_SYMBOLS[z]} {len(stages) + (z > 1)}' ' '")
    lines += [" 0 0 0 -1 0 0 '    ' ' '", "*", "* end"]
    (folder / "fort.5").write_text("\n".join(lines) + "\n")

    columns = zip(
        atmosphere.column_mass, atmosphere.temperature, atmosphere.pressure, atmosphere.electron_density, strict=True
    )
    n_depths = atmosphere.temperature.size
    table = "\n".join(f" {m:.6e} {t:.3f} {p:.6e} {e:.6e}" for m, t, p, e in columns)
    head = f"TEFF {star['teff']:7.0f}  GRAVITY {star['logg']:7.5f}  LTE \n" + "\n" * 21
    (folder / "fort.8").write_text(f"{head}READ DECK6{n_depths:3d} RHOX,T,P,XNE \n{table}\n")

    # A third of the Doppler width of the heaviest atoms in the coolest layer.
    vmicro = microturbulence(star["logg"])
    thermal = 0.1289**2 * atmosphere.temperature.min() / 100
    step = np.mean(WAVELENGTH_RANGE) / SPEED_OF_LIGHT * 2.355 / 3 * np.sqrt(thermal + vmicro**2 / 2)
    cutoff = 250.0 if star["logg"] <= 3.0 or star["teff"] >= 4000 else 500.0 if star["teff"] >= 3500 else 1000.0
    low, high = WAVELENGTH_RANGE
    molecular = " ".join(map(str, [n_lists - 1, *range(20, 19 + n_lists)])) if n_lists > 1 else "0 0"
    # A negative end means vacuum wavelengths throughout.
    (folder / "fort.55").write_text(
        f" 0 0 0\n 0 0 0 0\n 0 0 0 0 0\n 1 0 0 10 0\n 2 0 0\n {low:.3f} {-high:.3f} {cutoff:.1f} 0 1.0e-4 {step:.6f}\n"
        f" {molecular}\n {vmicro:.4f}\n"
    )
    (folder / "tas").write_text(f"ND={n_depths}\nIFMOL={int(n_lists > 1)}\nTMOLIM=8000.\n")


def _read_spectrum(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """fort.7 (flux) over fort.17 (continuum), at increasing wavelengths."""
    tables = []
    for name in ("fort.7", "fort.17"):
        if not (folder / name).is_file():
            raise SynspecError(f"Synspec wrote no spectrum: {_last_words(folder)}")
        values = np.fromfile(folder / name, sep=" ")
        if values.size < 4 or values.size % 2:
            raise SynspecError(f"Synspec's {name} cannot be read: {_last_words(folder)}")
        wavelength, first = np.unique(values[::2], return_index=True)
        tables.append((wavelength, values[1::2][first]))
    (wavelength, flux), (nodes, continuum) = tables
    normalised = flux / np.interp(wavelength, nodes, continuum)
    low, high = WAVELENGTH_RANGE
    if wavelength[0] > low + 5 or wavelength[-1] < high - 5:
        raise SynspecError(f"the spectrum ends early: {wavelength[0]:.1f}-{wavelength[-1]:.1f} Angstrom")
    if not np.isfinite(normalised).all() or normalised.min() < 0 or normalised.max() > 1.05:
        raise SynspecError(f"normalised flux out of [0, 1.05]: {normalised.min():.3g} to {normalised.max():.3g}")
    return wavelength, normalised


def _last_words(folder: Path) -> str:
    lines = (folder / "log").read_text(errors="replace").split("\n") if (folder / "log").is_file() else []
    return " / ".join(line.strip() for line in lines if line.strip())[-300:] or "it said nothing"
