"""Spectra of any source -> labels in K and dex, with their intervals and what speaks against them.

    spectrafm_hf.predict("spectra/")  # an astropy table: a row per spectrum and label

One arithmetic with the pipeline "stellar-labels" (`pipeline_spectrafm.tell`), so that their numbers are the same. A
`Labeller` holds a model and labels any number of spectra in constant memory; `predict` is the one call that does all.
"""

from __future__ import annotations

import hashlib
import math
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from .applicability import FILE_NAME, Applicability, Verdict
from .checkpoints import located
from .feature_extraction_spectrafm import SpectraFMFeatureExtractor
from .hub import WEIGHTS, fetch, load_pretrained
from .labels import get_label
from .pipeline_spectrafm import ABSTAIN_NEEDS, LabelAnswer, asked_labels, tell
from .prediction import Answers, ask
from .readers.astropy_table import table_of
from .sources import Conventions, Reading, count_source, read_source
from .spectra import Spectrum, highest_resolving_power

if TYPE_CHECKING:
    from .readers.astropy_table import Table

__all__ = ["LabelAnswer", "Labelled", "Labeller", "as_table", "predict"]

UNREADABLE, NOT_LEARNED = "unreadable", "not_learned"
"""Short names of flags beside those of `applicability`: there is no answer; the answer is a guess."""

MOST_TOKENS = 128
"""Per spectrum of a full batch: of longer ones fewer are read at once, whatever memory their lengths would need."""

UNEVEN = 1.5
"""Spectra of one batch differ by less than this factor in length, or most of it would be padding."""

EMBEDDING = "label features along readouts, 1"
"""What `embedding_of` gives; another name when it becomes something else."""

COLUMNS = {
    "name": "file, relative to the folder, or name of the star",
    "label": "name of the label",
    "unit": "of value, sigma and the ends of the intervals",
    "value": "NaN = no answer",
    "sigma": "half of the central 68.27 % interval",
    "low68": "lower end of the central 68.27 % interval",
    "high68": "upper end of the central 68.27 % interval",
    "low95": "lower end of the central 95 % interval",
    "high95": "upper end of the central 95 % interval",
    "calibrated": "the intervals were calibrated on stars that no training saw",
    "learned": "the label was learned at these wavelengths; masked = not known",
    "flags": "reasons not to trust the spectrum or its labels, sentences joined by '; '",
    "assumed": "what the spectrum did not tell and was taken for granted, likewise",
    "model": "shipped model, folder or Hub repository",
    "revision": "commit on the Hub, or SHA-256 of the weights of a folder",
}
"""Of `as_table`: name -> what it holds."""


@dataclass(frozen=True)
class Labelled:
    """One spectrum with its labels.

    Attributes:
        name: See `sources.Reading`.
        labels: Name -> answer, in the order asked for; NaN where there is none.
        flags: Reasons not to trust it, in sentences. Of a spectrum that cannot be read, why not.
        flag_names: Short names of the same, one per sentence: checks of `applicability`, `not_learned`, `unreadable`.
        assumed: What the spectrum did not tell and was taken for granted, in sentences.
        snr: Signal-to-noise ratio per pixel, as published; else as the model's pixels show it. None = not known.
        wavelength_range: First and last good pixel, vacuum Angstrom, rest frame; None = there is none.
        embedding: See `embedding_of`, shape (d,), float32; None = not asked for, or there is no spectrum.
    """

    name: str
    labels: Mapping[str, LabelAnswer]
    flags: tuple[str, ...]
    flag_names: tuple[str, ...]
    assumed: tuple[str, ...]
    snr: float | None
    wavelength_range: tuple[float, float] | None
    embedding: np.ndarray | None = field(default=None, repr=False, compare=False)

    @property
    def readable(self) -> bool:
        return UNREADABLE not in self.flag_names

    def to_dict(self) -> dict[str, Any]:
        """For JSON: numbers, strings and lists; None = no number."""

        def number(value: Any) -> Any:
            return None if isinstance(value, float) and not math.isfinite(value) else value

        answers = {
            name: {key: number(value) for key, value in vars(answer).items()} for name, answer in self.labels.items()
        }
        told = vars(self) | {"labels": answers, "snr": None if self.snr is None else number(self.snr)}
        if self.embedding is None:
            del told["embedding"]
            return told
        return told | {"embedding": self.embedding.tolist()}


@dataclass(frozen=True)
class _Chunk:
    """Spectra that are labelled together.

    Attributes:
        readings: All of them, in order.
        reasons: Why one cannot be read, by its place.
        places: Of those that can.
        rows: These, prepared.
        held: Highest resolving power that the sampling of each of these can hold.
    """

    readings: list[Reading]
    reasons: dict[int, str]
    places: list[int]
    rows: list[dict[str, np.ndarray]]
    held: list[float]


class Labeller:
    """A model that labels spectra, however many.

    Args:
        model: One that ships, a folder or a Hub repository.
        revision: Branch, tag or commit of a repository. Of a folder, the SHA-256 of the weights it must have.
        labels: Those wanted, in this order, or one text with commas; None = all of the model.
        batch_size: Spectra the model reads at once, or fewer longer ones.
        abstain: Give no answer (NaN) for spectra with a flag, and for labels that were not learned where one lies.
        device: Of torch. None = a CUDA device, if there is one, else the processor.
        check: Hold spectra against the limits of the model, if it has any. Without, flags say no more than which
            labels were not learned where a spectrum lies.
        embeddings: Give the embedding of each spectrum as well, which costs nothing.

    Attributes:
        model_id: The model as it was named.
        revision: Commit on the Hub, or SHA-256 of the weights of a folder.
        labels: Names, in order.
        model, extractor: Of the checkpoint.
        embedding_size: Numbers of an embedding.

    Raises:
        ValueError: A label it does not predict, `abstain` without limits or without check, weights of another SHA-256,
            a batch without spectra, a device without float64; see `hub.load_pretrained`.
        HubError: The repository cannot be had.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] = "spectrafm-small",
        revision: str | None = None,
        labels: Sequence[str] | str | None = None,
        batch_size: int = 64,
        abstain: bool = False,
        device: str | torch.device | None = None,
        check: bool = True,
        embeddings: bool = False,
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more spectra, got {batch_size}.")
        place = located(str(model))
        is_folder = Path(place).is_dir()
        folder = fetch(place, None if is_folder else revision)
        self.model_id = str(model)
        self.revision = sha256_of(folder / WEIGHTS) if is_folder else folder.name
        if is_folder and revision not in (None, self.revision):
            raise ValueError(
                f"{model} is a folder, whose weights have the SHA-256 {self.revision}, and {revision} was asked for; "
                "leave revision out, or give the folder or Hub repository that has it."
            )
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if self.device.type == "mps":
            raise ValueError("wavelengths need float64, which Apple's mps does not have; take device='cpu'.")
        network, self.extractor = load_pretrained(folder)
        self.model = network.eval()
        torch.nn.Module.to(self.model, self.device)
        self.labels = asked_labels(self.extractor, labels)
        self.batch_size, self.abstain, self.embeddings = batch_size, abstain, embeddings
        self._readouts = self.model.head.mean_weight.detach().cpu().float().numpy()
        self.embedding_size = len(self.labels) * len(self._readouts)
        self.limits = Applicability.load(folder) if check and (folder / FILE_NAME).is_file() else None
        if abstain and not check:
            raise ValueError("abstain needs check=True: without checks nothing says where to give no answer.")
        if abstain and self.limits is None:
            raise ValueError(ABSTAIN_NEEDS)

    def label(self, readings: Iterable[Reading]) -> Iterator[Labelled]:
        """Labels of each reading, in order, `batch_size` at a time; what cannot be read has a flag, and NaN.

        While the model reads one batch, the one before is checked and the next one prepared; but for a process with one
        thread, as workers are that share a machine, for which two would be in each other's way.
        """
        waiting = iter(readings)
        alone = self.device.type == "cpu" and torch.get_num_threads() == 1
        with ThreadPoolExecutor(1) as beside:
            at_work: deque[Future[list[Labelled]]] = deque()
            while some := list(islice(waiting, self.batch_size)):
                chunk = self._prepare(some)
                answers = self._ask(chunk.rows)
                if alone:
                    yield from self._finish(chunk, answers)
                    continue
                at_work.append(beside.submit(self._finish, chunk, answers))
                while len(at_work) > 1:
                    yield from at_work.popleft().result()
            while at_work:
                yield from at_work.popleft().result()

    def _prepare(self, readings: list[Reading]) -> _Chunk:
        chunk = _Chunk(readings, {}, [], [], [])
        before, held = np.zeros(0), np.nan
        for place, reading in enumerate(readings):
            if reading.spectrum is None:
                chunk.reasons[place] = reading.reason or "it cannot be read"
                continue
            try:
                chunk.rows.append(prepared(self.extractor, reading.spectrum))
                chunk.places.append(place)
                if not np.array_equal(reading.spectrum.wavelength, before):  # as spectra of a survey are
                    before = reading.spectrum.wavelength
                    held = highest_resolving_power(before)
                chunk.held.append(held)
            except ValueError as error:
                chunk.reasons[place] = str(error)
        return chunk

    def _ask(self, rows: list[dict[str, np.ndarray]]) -> Answers | None:
        """The model's answers, those of like lengths read together."""
        if not rows:
            return None
        patch = self.extractor.patch_size
        n_tokens = np.array([-(-len(row["flux"]) // patch) for row in rows])
        order = np.argsort(n_tokens, kind="stable")
        parts = []
        while order.size:
            longest = n_tokens[order[-1]]
            most = max(1, min(self.batch_size, self.batch_size * MOST_TOKENS // longest))
            together = order[-most:][n_tokens[order[-most:]] * UNEVEN >= longest]
            order = order[: order.size - together.size]
            some = ask(self.model, self.extractor, [rows[one] for one in together], len(together))
            parts.append((together, some))
        back = np.argsort(np.concatenate([together for together, _ in parts]))
        return Answers(*(np.concatenate(values)[back] for values in zip(*(some for _, some in parts), strict=True)))

    def _finish(self, chunk: _Chunk, answers: Answers | None) -> list[Labelled]:
        found = {place: self._unreadable(chunk.readings[place], reason) for place, reason in chunk.reasons.items()}
        if answers is not None:
            verdicts: Sequence[Verdict | None] = [None] * len(chunk.rows)
            if self.limits is not None:
                verdicts = self.limits.check(self.extractor, chunk.rows, answers, all_scores=False, held=chunk.held)
            silent = [self.abstain and verdict is not None and not verdict.applicable for verdict in verdicts]
            good = [row["wavelength"][row["attention_mask"] > 0] for row in chunk.rows]
            told = tell(
                self.extractor, answers.mean, answers.log_var, answers.noise, good, self.labels, silent, self.abstain
            )
            embeddings: Sequence[np.ndarray | None] = [None] * len(chunk.rows)
            if self.embeddings:
                asked = [self.extractor.label_names.index(name) for name in self.labels]
                embeddings = list(embedding_of(answers.features[:, asked], self._readouts))
            for place, verdict, one, noise, embedding in zip(
                chunk.places, verdicts, told, answers.noise, embeddings, strict=True
            ):
                spectrum = chunk.readings[place].spectrum
                assert spectrum is not None, "prepared spectra exist"
                flags = [] if verdict is None else verdict.flags
                found[place] = Labelled(
                    name=chunk.readings[place].name,
                    labels=one.labels,
                    flags=(*(sentence for _, sentence in flags), *one.guesses),
                    flag_names=(*(name for name, _ in flags), *[NOT_LEARNED] * len(one.guesses)),
                    assumed=(*chunk.readings[place].assumed, *unknown_sharpness(spectrum)),
                    snr=shown_snr(spectrum, float(noise)),
                    wavelength_range=good_range(spectrum),
                    embedding=embedding,
                )
        return [found[place] for place in range(len(chunk.readings))]

    def _unreadable(self, reading: Reading, reason: str) -> Labelled:
        none = math.nan
        answers = {
            name: LabelAnswer(none, none, none, none, none, none, get_label(name).unit, False, None)
            for name in self.labels
        }
        where = None if reading.spectrum is None else good_range(reading.spectrum)
        return Labelled(reading.name, answers, (reason,), (UNREADABLE,), reading.assumed, None, where)


def prepared(extractor: SpectraFMFeatureExtractor, spectrum: Spectrum) -> dict[str, np.ndarray]:
    """A spectrum as the model reads it, with its errors and resolving power where they are known.

    Raises:
        ValueError: See `SpectraFMFeatureExtractor.place`.
    """
    error: np.ndarray | None = None
    power: np.ndarray | float | None = None
    if spectrum.ivar is not None:
        with np.errstate(divide="ignore", invalid="ignore"):
            error = np.where(spectrum.ivar > 0, 1 / np.sqrt(spectrum.ivar), np.nan)
    if spectrum.resolving_power is not None:
        power = spectrum.resolving_power
    elif spectrum.fwhm is not None:
        power = spectrum.wavelength / spectrum.fwhm
    return extractor.tokenise(extractor.place(spectrum.flux, spectrum.wavelength, spectrum.bad_pixel, error, power))


def embedding_of(features: np.ndarray, readouts: np.ndarray) -> np.ndarray:
    r"""Where spectra lie among others, as the model sees them: like stars are near each other, by Euclidean distance.

    The network has no pooled output. What it makes of a whole spectrum are the features of its labels: for each label
    asked for, what the label's query gathers from all tokens, after which one linear readout gives the label. Features
    also hold how noisy the spectrum is, from which sigma is read, and that would bring together stars observed alike.
    So the embedding has of each feature :math:`f_l` what any readout :math:`w_m` of a label can see, its components

    .. math:: e_{lm} = f_l \cdot q_m, \qquad Q = (W W^T)^{-1/2} W,

    along the orthonormal vectors :math:`q_m` nearest to the readouts. They are neither scaled nor made one length.

    Measured with 1,000 synthetic stars in the H band and 1,000 in the optical, asked for at S/N 30 in a catalogue at
    S/N 100. The same star is nearest for 54 and 50 % of them; by cosines of the whole features for 31 and 39 %, of the
    mean over the encoder's tokens 23 and 29 %; with components of unit variance, uncorrelated ("whitened"), 18 and
    12 %. Its ten nearest others differ from it, in the median, by 0.14, 0.11 and 0.17 of what random pairs do in Teff,
    log g and [Fe/H] in the H band (104 K, 0.15, 0.11 dex) and by 0.48 in [Mg/Fe]; in the optical by 0.15, 0.14 and
    0.14. Ten stars chosen by the true labels reach 0.11, 0.08, 0.14 there and 0.14, 0.12, 0.13 here. Cosines of the
    components are worse (Teff: 0.20 and 0.17). Predicted labels in units of their sigma find the same star more often
    (64 and 59 %) and say less of [Mg/Fe] (0.60); of [C/Fe] and [N/Fe], which no label tells, neither says anything.

    Args:
        features: Of the labels asked for, shape (n_spectra, n_asked, width), see `prediction.Answers`.
        readouts: Weights of the mean of all labels of the model, shape (n_readouts, width).

    Returns:
        Shape (n_spectra, n_asked * n_readouts), float32, without a unit.
    """
    left, _, right = np.linalg.svd(readouts.astype(float), full_matrices=False)
    along = features.astype(float) @ (left @ right).T
    return along.reshape(len(features), -1).astype(np.float32)


def unknown_sharpness(spectrum: Spectrum) -> list[str]:
    """What is assumed of a spectrum that does not tell how sharp its lines are."""
    if spectrum.resolving_power is not None or spectrum.fwhm is not None:
        return []
    return ["its resolving power (lambda / FWHM) is not told, so it was taken for one of those in training"]


def good_range(spectrum: Spectrum) -> tuple[float, float] | None:
    """First and last good pixel, vacuum Angstrom; None = there is none."""
    good = np.flatnonzero(~spectrum.bad_pixel)
    return (float(spectrum.wavelength[good[0]]), float(spectrum.wavelength[good[-1]])) if good.size else None


def shown_snr(spectrum: Spectrum, noise: float) -> float | None:
    """Published signal-to-noise ratio per pixel, else the one that noise (relative to the continuum) amounts to, else
    the median of what the errors tell."""
    if spectrum.snr is not None and math.isfinite(spectrum.snr):
        return float(spectrum.snr)
    if noise > 0:
        return 1 / noise
    if spectrum.ivar is None or not (known := ~spectrum.bad_pixel & (spectrum.ivar > 0)).any():
        return None
    return float(np.median(spectrum.flux[known] * np.sqrt(spectrum.ivar[known])))


def sha256_of(path: Path) -> str:
    """Of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def spoken(answer: LabelAnswer) -> str:
    """An answer for people, its sigma with two digits: `4577 \u00b1 115 K`, `no answer`."""
    if not math.isfinite(answer.value):
        return "no answer"
    digits = min(max(1 - math.floor(math.log10(answer.sigma)), 0), 4) if answer.sigma > 0 else 4
    return f"{answer.value:.{digits}f} \u00b1 {answer.sigma:.{digits}f} {answer.unit}"


def draw(labeller: Labeller, reading: Reading, labelled: Labelled, path: str | Path) -> None:
    """A picture of a spectrum with the places where its labels look, and the elements whose lines are there.

    Args:
        reading, labelled: Of the same spectrum, which must be readable.
        path: Where the picture goes; its suffix chooses the format.

    Raises:
        ValueError: The spectrum cannot be read.
    """
    from .explain import attention_by_wavelength, in_few_pixels, peaks
    from .line_list import read_line_list
    from .plots import plot_spectrum

    spectrum, extractor = reading.spectrum, labeller.extractor
    if spectrum is None:
        raise ValueError(f"{reading.name} has no spectrum to draw: {reading.reason}")
    row = prepared(extractor, spectrum)
    good = row["attention_mask"] > 0
    seen = row["wavelength"][good]
    depth = 1 - extractor.unscale(row["flux"][good], seen)
    curves = attention_by_wavelength(labeller.model, extractor, [row], ["star"], seen)["star"]
    patch = np.flatnonzero(good) // extractor.patch_size
    few = in_few_pixels(patch, extractor.patch_size)
    curves = np.where(few & ~few.all(), np.nan, curves)
    attention = {name: curves[extractor.label_names.index(name)] for name in labelled.labels}
    places = {name: peaks(seen, curve, depth, read_line_list()) for name, curve in attention.items()}
    looked_at = {int(patch[np.abs(seen - where).argmin()]) for found in places.values() for where, _ in found}
    ends = [seen[patch == one][[0, -1]] for one in looked_at]
    lines = [line.wavelength for line in read_line_list() if any(low <= line.wavelength <= high for low, high in ends)]
    plot_spectrum(
        spectrum.wavelength,
        np.where(spectrum.bad_pixel, np.nan, spectrum.flux),
        seen,
        attention,
        places,
        lines,
        {name: spoken(answer) for name, answer in labelled.labels.items()},
        labelled.name,
        path,
    )


def as_table(labelled: Iterable[Labelled], labeller: Labeller) -> Table:
    """An astropy table of `COLUMNS`: a row per spectrum and label, in order."""
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    for spectrum in labelled:
        for name, answer in spectrum.labels.items():
            row = vars(answer) | {
                "name": spectrum.name,
                "label": name,
                "flags": "; ".join(spectrum.flags),
                "assumed": "; ".join(spectrum.assumed),
                "model": labeller.model_id,
                "revision": labeller.revision,
            }
            for column, entries in columns.items():
                entries.append(row[column])
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("spectrafm_hf", "torch", "numpy"))
    meta = {"model": labeller.model_id, "revision": labeller.revision, "versions": versions}
    return table_of(columns, COLUMNS, meta)


def predict(
    source: Any,
    model: str | os.PathLike[str] = "spectrafm-small",
    labels: Sequence[str] | str | None = None,
    *,
    medium: Literal["vacuum", "air"] | None = None,
    velocity: float | None = None,
    redshift: float | None = None,
    wavelength_unit: str | None = None,
    resolving_power: float | None = None,
    bad_pixel: Literal["True is bad", "True is good"] | None = None,
    reader: Mapping[str, Any] | None = None,
    revision: str | None = None,
    abstain: bool = False,
    batch_size: int = 64,
    progress: bool | None = None,
) -> Table:
    """Labels of the spectra of any source.

        spectrafm_hf.predict("aspcapStar-dr17-2M00000002+7417074.fits")
        spectrafm_hf.predict((flux, wavelength), medium="air", velocity=-12.3)

    Args:
        source: A file, a folder, arrays, a table, a `specutils.Spectrum`, a dataset, or a list of them; see
            `sources.read_source`.
        model, revision, labels, abstain, batch_size: See `Labeller`.
        medium: What the wavelengths were measured in, if the spectra do not tell it.
        velocity: Radial velocity of the star, km/s, positive = receding, if they are not at rest. Or:
        redshift: The same as z.
        wavelength_unit: As astropy spells it, e.g. `nm`.
        resolving_power: lambda / FWHM.
        bad_pixel: What True means in arrays called `mask`.
        reader: Options of the reader of the files, e.g. `{"row": 2}` or `{"kind": "best-fit"}`; see
            `readers.any_file.read_spectrum`.
        progress: Show a bar; None = on a terminal, of several spectra.

    Returns:
        An astropy table with a row per spectrum and label and the columns of `COLUMNS`. One of several spectra that
        cannot be read has NaN, and the reason among its flags.

    Raises:
        ValueError: The source is one spectrum that cannot be read, or nothing at all; see also `Labeller`.
        FileNotFoundError: There is no such file.
        TypeError: The source is nothing that could hold spectra.
    """
    told = Conventions(
        medium=medium,
        velocity=velocity,
        redshift=redshift,
        wavelength_unit=wavelength_unit,
        resolving_power=resolving_power,
        bad_pixel=bad_pixel,
        reader=reader or {},
    )
    readings, total = read_source(source, told), count_source(source)
    labeller = Labeller(model, revision, labels, batch_size, abstain)
    if progress is None:
        progress = total != 1 and sys.stderr.isatty()
    with tqdm(labeller.label(readings), total=total, unit="spectra", disable=not progress) as bar:
        labelled = list(bar)
    if len(labelled) == 1 and not labelled[0].readable and not holds_several(source):
        raise ValueError(labelled[0].flags[0])
    return as_table(labelled, labeller)


def holds_several(source: Any) -> bool:
    """Whether a source is one that may hold any number of spectra: a folder, a list."""
    if isinstance(source, (str, os.PathLike)):
        return Path(source).is_dir()
    return isinstance(source, list)
