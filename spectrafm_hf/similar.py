"""Similar stars: spectra -> the stars of a catalogue in whose spectra the model sees the same.

    label_survey("survey/", "catalogue.parquet", embeddings=True)
    similar("star.fits", "catalogue.parquet", n=10)  # an astropy table, a row per neighbour

The embedding of a spectrum (`labelling.embedding_of`) comes along with its labels and costs nothing more, so the
catalogue of labels is the index too: one file, whole or not at all, made by one model, gone on with after a kill.
Any selection of its rows in any order is a catalogue as well, as long as what it tells of its making is kept, as
pyarrow and astropy keep it.

Search is exact: the catalogue is read once, a block at a time, whatever its length. In a million stars one spectrum
takes 0.6 s on one core, a hundred 1.4 s; to count its stars when it is opened takes as long as one. Whoever asks again
and again may have the embeddings in memory, in the FAISS index of `datasets`: 6 s and 300 MB to make, then 0.01 s, and
the same answers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from .labelling import EMBEDDING, Labelled, Labeller, holds_several
from .labels import get_label
from .readers.astropy_table import table_of
from .readers.catalogue_file import read_provenance
from .sources import Conventions, read_source

if TYPE_CHECKING:
    from .readers.astropy_table import Table

__all__ = ["SimilarStars", "embed", "similar"]

BLOCK = 16_384
"""Stars of a catalogue compared at once."""

AT_WORK = 1 << 22
"""Numbers in memory while queries are compared with a block: fewer queries at once where they would be more."""

COLUMNS = {
    "name": "of the spectrum asked about: file, relative to the folder, or name of the star",
    "rank": "1 = nearest",
    "neighbour": "name of the star in the catalogue",
    "row": "its row in the catalogue as it lies there, from 0",
    "distance": "Euclidean, between the two embeddings; no unit, to be compared within one catalogue",
    "flag_names": "short names of reasons not to trust the spectrum asked about",
    "neighbour_flag_names": "the same of the neighbour",
}
"""Of the table of neighbours, beside four columns per label: `teff`, `teff_sigma` of the spectrum asked about,
`neighbour_teff`, `neighbour_teff_sigma`."""


def embed(
    source: Any,
    model: str | os.PathLike[str] = "spectrafm-small",
    revision: str | None = None,
    *,
    labels: list[str] | None = None,
    conventions: Conventions | None = None,
    batch_size: int = 64,
) -> np.ndarray:
    """Embeddings of the spectra of any source.

    Args:
        source: See `sources.read_source`.
        model, revision, labels, batch_size: See `labelling.Labeller`.
        conventions: What the spectra do not tell themselves.

    Returns:
        Shape (n_spectra, d), float32, see `labelling.embedding_of`; NaN for one that cannot be read.

    Raises:
        ValueError, FileNotFoundError, TypeError: See `sources.read_source` and `Labeller`.
    """
    labeller = Labeller(model, revision, labels, batch_size, check=False, embeddings=True)
    none = np.full(labeller.embedding_size, np.nan, dtype=np.float32)
    found = [one.embedding for one in labeller.label(read_source(source, conventions))]
    return np.array([none if one is None else one for one in found]).reshape(-1, none.size)


def similar(
    source: Any,
    catalogue: str | os.PathLike[str],
    n: int = 10,
    *,
    model: str | os.PathLike[str] = "spectrafm-small",
    revision: str | None = None,
    conventions: Conventions | None = None,
    batch_size: int = 64,
) -> Table:
    """The stars of a catalogue that are most like the spectra of any source; see `SimilarStars`, for many questions.

    Args:
        source, n, conventions: See `SimilarStars.near`.
        catalogue, model, revision, batch_size: See `SimilarStars`.

    Raises:
        See `SimilarStars` and `SimilarStars.near`.
    """
    return SimilarStars(catalogue, model, revision, batch_size=batch_size).near(source, n, conventions)


class SimilarStars:
    """A catalogue in which the stars most like a spectrum are found.

    Args:
        catalogue: Parquet that `catalogue.label_survey` wrote with `embeddings=True`, or some rows of it, in any order,
            that pyarrow or astropy wrote again.
        model, revision: The model that made it, see `labelling.Labeller`. It is not taken from the file: what is
            loaded, and from where, is the caller's to say.
        batch_size, device: See `Labeller`.
        faiss: Hold the embeddings in memory, in the FAISS index of `datasets`. Making it takes as long as ten
            questions do without it; answers are the same.

    Attributes:
        catalogue: Its path.
        labeller: The model.
        n_stars: Rows with an embedding.

    Raises:
        FileNotFoundError: There is no such catalogue.
        ValueError: It was not written by this package, or that is not in it any more; it has no embeddings, other
            ones, or no star, or lacks a column; another model made it; FAISS is asked for and not installed; see also
            `Labeller`.
    """

    def __init__(
        self,
        catalogue: str | os.PathLike[str],
        model: str | os.PathLike[str] = "spectrafm-small",
        revision: str | None = None,
        *,
        batch_size: int = 64,
        device: str | torch.device | None = None,
        faiss: bool = False,
    ):
        self.catalogue = Path(catalogue)
        told = _provenance_of(self.catalogue)
        plan = told["plan"]
        names = str(plan["labels"]).split(", ")
        _check_columns(self.catalogue, names, int(plan["embedding size"]))
        self.n_stars = sum(len(rows) for rows, _ in _blocks(self.catalogue))
        if self.n_stars < 1:
            n_rows = pq.read_metadata(self.catalogue).num_rows
            raise ValueError(
                f"{catalogue} holds no star: none of its {n_rows} spectra could be read, and its column flags says why."
                if n_rows
                else f"{catalogue} holds no star: it has no rows; was it cut to none?"
            )
        self.labeller = Labeller(model, revision, names, batch_size, device=device, embeddings=True)
        if self.labeller.revision != plan["model revision"]:
            raise ValueError(
                f"{catalogue} was made by the model {plan['model']}, revision {plan['model revision']}, and embeddings "
                f"of {model}, revision {self.labeller.revision}, cannot be compared with its own; give model= and "
                "revision= of that one, or make the catalogue again with this one."
            )
        self._index = _faiss_index(self.catalogue) if faiss else None

    def near(self, source: Any, n: int = 10, conventions: Conventions | None = None) -> Table:
        """The stars most like each spectrum of a source.

        A spectrum that is in the catalogue itself is its own nearest neighbour, at distance 0. Compare like with like:
        an embedding depends on the wavelengths that were seen, and noise of S/N 30 moves it by a tenth of the distance
        of random pairs.

        Args:
            source: See `sources.read_source`.
            n: Neighbours of each spectrum.
            conventions: What the spectra do not tell themselves.

        Returns:
            An astropy table of `COLUMNS`: n rows per spectrum, nearest first. Of several spectra, those that cannot be
            read are left out; `meta["unreadable"]` names them, and why.

        Raises:
            ValueError: n is not within 1 and the stars of the catalogue; or no spectrum can be read.
            FileNotFoundError, TypeError: See `sources.read_source`.
        """
        if not 1 <= n <= self.n_stars:
            raise ValueError(
                f"n, the number of neighbours, must be within 1 and {self.n_stars:,}, the stars of {self.catalogue} "
                f"that could be read, got {n}."
            )
        asked: list[Labelled] = []
        unreadable: list[Labelled] = []
        for one in self.labeller.label(read_source(source, conventions)):
            (asked if one.readable else unreadable).append(one)
        if not asked:
            said = unreadable[0].flags[0] if unreadable else "the source holds no spectrum."
            raise ValueError(
                f"none of {len(unreadable)} spectra can be read, e.g. {unreadable[0].name}: {said}"
                if holds_several(source) and unreadable
                else said
            )
        queries = np.array([one.embedding for one in asked])
        rows, distance = self._nearest(queries, n)
        return self._table(asked, unreadable, rows, distance)

    def _nearest(self, queries: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the catalogue and their distances, both (n_queries, n), nearest first."""
        if self._index is None:
            return nearest(queries, _blocks(self.catalogue), n)
        _, found = self._index.get_nearest_examples_batch("embedding", queries, n)
        rows = np.array([one["row"] for one in found])
        distance = _distances(queries, np.array([one["embedding"] for one in found]))
        order = np.lexsort((rows, distance))
        return np.take_along_axis(rows, order, 1), np.take_along_axis(distance, order, 1)

    def _table(
        self, asked: list[Labelled], unreadable: list[Labelled], rows: np.ndarray, distance: np.ndarray
    ) -> Table:
        names, n = self.labeller.labels, rows.shape[1]
        there = _rows_at(self.catalogue, rows.ravel(), _columns_shown(names))
        columns: dict[str, Any] = {
            "name": np.repeat([one.name for one in asked], n),
            "rank": np.tile(np.arange(1, n + 1), len(asked)),
            "neighbour": there["name"].to_pylist(),
            "row": rows.ravel(),
            "distance": distance.ravel(),
        }
        descriptions, units = dict(COLUMNS), dict[str, str]()
        for name in names:
            label = get_label(name)
            for key, column, meaning in (
                ("value", name, f"{label.symbol}; NaN = no answer"),
                ("sigma", f"{name}_sigma", f"half of the central 68.27 % interval of {label.symbol}"),
            ):
                columns[column] = np.repeat([getattr(one.labels[name], key) for one in asked], n)
                columns[f"neighbour_{column}"] = there[column].to_numpy()
                descriptions |= {column: meaning, f"neighbour_{column}": f"{meaning}, of the neighbour"}
                units |= {column: label.unit, f"neighbour_{column}": label.unit}
        columns["flag_names"] = np.repeat(["; ".join(one.flag_names) for one in asked], n)
        columns["neighbour_flag_names"] = there["flag_names"].to_pylist()
        meta = {
            "model": self.labeller.model_id,
            "revision": self.labeller.revision,
            "catalogue": str(self.catalogue),
            "unreadable": "; ".join(f"{one.name}: {' '.join(one.flags)}" for one in unreadable),
        }
        table = table_of(columns, descriptions, meta)
        for column, unit in units.items():
            table[column].unit = unit
        return table


# ---------------------------------------------------------------- the catalogue


def _provenance_of(catalogue: Path) -> dict[str, Any]:
    """What a catalogue with embeddings tells of its making; raises as `SimilarStars` does."""
    if not catalogue.is_file():
        raise FileNotFoundError(
            f"there is no catalogue {catalogue}; `spectrafm predict --input SURVEY --output {catalogue.name} "
            "--embeddings` makes one."
        )
    told = read_provenance(catalogue)
    if told is None:
        raise ValueError(
            f"{catalogue} has the columns of a catalogue, but tells no more by which model they were made, and "
            "embeddings of two models cannot be compared: whatever selected its rows has left it out, as pandas does. "
            "Select from the whole catalogue again with what keeps it, e.g. pyarrow: "
            f"pq.write_table(pq.read_table('catalogue.parquet').filter(pc.field('snr') > 50), '{catalogue.name}')."
            if _was_ours(catalogue)
            else f"{catalogue} was not written by spectrafm; give a catalogue of `spectrafm predict --output`."
        )
    made = told["plan"].get("embedding")
    if made is None:
        raise ValueError(
            f"{catalogue} has no embeddings, in which similar stars are searched; make it again as .parquet with "
            "--embeddings (`label_survey(..., embeddings=True)`)."
        )
    if made != EMBEDDING:
        raise ValueError(
            f"{catalogue} has embeddings of another kind ({made!r}, and this version of spectrafm_hf makes "
            f"{EMBEDDING!r}); make it again."
        )
    return told


def _was_ours(catalogue: Path) -> bool:
    """Whether a file without provenance has the columns that a catalogue with embeddings has."""
    try:
        return {"row", "name", "flag_names", "embedding"} <= set(pq.read_schema(catalogue).names)
    except (OSError, pa.ArrowInvalid):
        return False


def _columns_shown(label_names: list[str]) -> list[str]:
    """Those of the catalogue that the table of neighbours tells of."""
    return ["name", "flag_names", *(column for name in label_names for column in (name, f"{name}_sigma"))]


def _check_columns(catalogue: Path, label_names: list[str], size: int) -> None:
    """Refuse a catalogue that has lost a column.

    Raises:
        ValueError: One that is needed is not there, or the embeddings are not lists of `size` numbers each.
    """
    schema = pq.read_schema(catalogue)
    needed = ["embedding", *_columns_shown(label_names)]
    if missing := [name for name in needed if name not in schema.names]:
        raise ValueError(
            f"{catalogue} has no column {', '.join(missing)}; of a catalogue that was cut, similar stars need the "
            f"columns {', '.join(needed)}: select again and keep them."
        )
    kind = schema.field("embedding").type
    if not pa.types.is_fixed_size_list(kind) or kind.list_size != size or not pa.types.is_floating(kind.value_type):
        raise ValueError(
            f"the column embedding of {catalogue} must be lists of {size} numbers each "
            f"({pa.list_(pa.float32(), size)}), got {kind}; something wrote it anew: select again, with pyarrow, say."
        )


def _blocks(catalogue: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows (n,) of a catalogue and their embeddings (n, d), those without one left out; `BLOCK` of them at a time.

    Rows are counted as they lie in the file: its column `row` has those of the survey, in a selection others.
    """
    first = 0
    with pq.ParquetFile(catalogue) as file:
        for batch in file.iter_batches(BLOCK, columns=["embedding"]):
            rows, vectors = np.arange(first, first + len(batch)), _matrix(batch.column("embedding"))
            first += len(batch)
            there = np.isfinite(vectors[:, 0])
            if there.any():
                yield (rows, vectors) if there.all() else (rows[there], vectors[there])


def _matrix(lists: pa.FixedSizeListArray) -> np.ndarray:
    """Lists of one length -> (n, d); NaN where there is none."""
    vectors = lists.flatten().to_numpy(zero_copy_only=False).reshape(-1, lists.type.list_size)
    if not lists.null_count:
        return vectors
    whole = np.full((len(lists), vectors.shape[1]), np.nan, vectors.dtype)
    whole[lists.is_valid().to_numpy(zero_copy_only=False)] = vectors
    return whole


def _rows_at(catalogue: Path, rows: np.ndarray, columns: list[str]) -> pa.Table:
    """Some columns of some rows, in the order of `rows`, which may repeat."""
    wanted, back = np.unique(rows, return_inverse=True)
    parts, first = [], 0
    with pq.ParquetFile(catalogue) as file:
        for group in range(file.num_row_groups):
            stop = first + file.metadata.row_group(group).num_rows
            inside = wanted[(wanted >= first) & (wanted < stop)]
            if inside.size:
                parts.append(file.read_row_group(group, columns).take(inside - first))
            first = stop
    return pa.concat_tables(parts).take(back)


def _faiss_index(catalogue: Path) -> datasets.Dataset:
    """Rows and embeddings of a catalogue as a dataset with an exact index of Euclidean distances.

    Raises:
        ValueError: FAISS is not installed.
    """
    if find_spec("faiss") is None:
        raise ValueError("faiss=True needs FAISS: pip install 'spectrafm_hf[similar]'; or leave it out.")
    rows, vectors = (np.concatenate(parts) for parts in zip(*_blocks(catalogue), strict=True))
    lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    table = pa.table({"row": rows, "embedding": lists})
    stars = datasets.Dataset(table, fingerprint=f"stars-{len(table)}").with_format("numpy")
    stars.add_faiss_index("embedding")
    return stars


# ---------------------------------------------------------------- exact search


def nearest(
    queries: np.ndarray, blocks: Iterator[tuple[np.ndarray, np.ndarray]], n: int
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest of many vectors that come in blocks, in constant memory.

    One matrix product, in float64, chooses; distances of the chosen are computed from differences, which cancel less.

    Args:
        queries: Shape (n_queries, d).
        blocks: Numbers of vectors, shape (n_vectors,), and the vectors, (n_vectors, d).
        n: How many; all blocks together have as many.

    Returns:
        Numbers and distances, both (n_queries, n), nearest first; of equal ones the lower number.
    """
    found = np.full((len(queries), n), -1, dtype=np.int64)
    distance = np.full((len(queries), n), np.inf)
    for rows, vectors in blocks:
        most = min(n, len(rows))
        at_once = max(1, AT_WORK // (len(rows) + most * vectors.shape[1]))
        vectors = vectors.astype(float)
        half_square = 0.5 * (vectors**2).sum(axis=1)
        for some in (slice(start, start + at_once) for start in range(0, len(queries), at_once)):
            closer = half_square - queries[some] @ vectors.T  # (distance^2 - |query|^2) / 2
            near = np.sort(np.argpartition(closer, most - 1, axis=1)[:, :most], axis=1)
            all_rows = np.concatenate([found[some], rows[near]], axis=1)
            all_distances = np.concatenate([distance[some], _distances(queries[some], vectors[near])], axis=1)
            order = np.argsort(all_distances, axis=1, kind="stable")[:, :n]
            found[some] = np.take_along_axis(all_rows, order, 1)
            distance[some] = np.take_along_axis(all_distances, order, 1)
    return found, distance


def _distances(queries: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """(n_queries, d) and (n_queries, n, d) -> (n_queries, n), float64."""
    apart = queries[:, None].astype(float) - vectors
    return np.sqrt((apart**2).sum(axis=-1))
