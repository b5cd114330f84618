"""Similar spectra are those of similar stars: another observation of the same one first, giants beside giants,
metal-poor stars beside metal-poor ones; whatever else was read with them, and however they were searched."""

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.table import Table
from conftest import star_flux, tiny_extractor, tiny_model

from spectrafm_hf import Spectrum
from spectrafm_hf.catalogue import label_survey
from spectrafm_hf.labelling import EMBEDDING, Labeller, embedding_of, prepared
from spectrafm_hf.prediction import ask
from spectrafm_hf.readers.catalogue_file import read_provenance
from spectrafm_hf.similar import SimilarStars, embed, nearest, similar
from spectrafm_hf.sources import Conventions, read_source
from spectrafm_hf.synthesis.surveys import OPTICAL_WAVELENGTH, optical_synthesizer

LABELS = ["teff", "logg", "fe_h"]
KINDS = {
    "giant": ((4200, 4900), (1.2, 2.5), (-0.4, 0.3)),
    "dwarf": ((5000, 6000), (4.2, 4.6), (-0.4, 0.3)),
    "poor-giant": ((4500, 5200), (1.2, 2.5), (-2.3, -1.7)),
    "poor-dwarf": ((5200, 6000), (4.2, 4.6), (-2.3, -1.7)),
}
"""Ranges of Teff [K], log g and [Fe/H] [dex]."""
N_EACH, SNR = 15, 100.0
BROKEN = "broken"


@pytest.fixture(scope="module")
def stars():
    """Names, labels (n_stars, 3) in K and dex, and flux without noise, of four kinds of stars."""
    rng = np.random.default_rng(0)
    labels = np.concatenate(
        [np.stack([rng.uniform(*ends, N_EACH) for ends in kind], axis=1) for kind in KINDS.values()]
    )
    names = [f"{kind} {number}" for kind in KINDS for number in range(N_EACH)]
    return names, labels, optical_synthesizer()(labels)


def observed(stars, seed, snr=SNR):
    """The stars as a spectrograph sees them once."""
    noise = np.random.default_rng(seed).standard_normal(stars[2].shape) / snr
    return [
        Spectrum(
            OPTICAL_WAVELENGTH, flux, np.zeros(flux.size, dtype=bool), name, "test",
            ivar=np.full(flux.size, snr**2), resolving_power=3000.0,
        )
        for name, flux in zip(stars[0], stars[2] + noise, strict=True)
    ]  # fmt: skip


def written(spectra, folder):
    """A folder of Parquet with a row per spectrum, each with pixels of its own."""
    folder.mkdir()
    lists = {"flux": [s.flux for s in spectra], "wavelength": [s.wavelength for s in spectra]}
    if all(s.ivar is not None for s in spectra):
        lists["ivar"] = [s.ivar for s in spectra]
    pq.write_table(pa.table({"object_id": [s.star_id for s in spectra], **lists}), folder / "train.parquet")
    return folder


@pytest.fixture(scope="module")
def catalogue(stars, tmp_path_factory):
    """Of one observation of the stars, by the model that ships."""
    folder = tmp_path_factory.mktemp("similar")
    told = {"labels": LABELS, "embeddings": True, "check": False, "progress": False}
    told |= {"conventions": Conventions(resolving_power=3000.0)}
    return label_survey(written(observed(stars, 1), folder / "stars"), folder / "catalogue.parquet", **told).path


@pytest.fixture(scope="module")
def searched(catalogue):
    return SimilarStars(catalogue)


@pytest.fixture(scope="module")
def neighbours(searched, stars):
    """Five of each star, asked for with another observation."""
    return searched.near(observed(stars, 2), n=5)


def by_star(neighbours, column):
    return np.array(neighbours[column]).reshape(-1, 5)


# ---------------------------------------------------------------- physics


def test_another_observation_of_the_star_is_nearest(neighbours, stars):
    assert (by_star(neighbours, "neighbour") == np.array(stars[0])[:, None]).any(axis=1).mean() > 0.95
    first = by_star(neighbours, "neighbour")[:, 0]
    assert (first == np.array(stars[0])).mean() > 0.8


def test_neighbours_are_stars_of_the_same_kind(neighbours, stars):
    """By the labels they were made with, not by those that the model gives."""
    labels = stars[1][by_star(neighbours, "row")]
    metal_poor, giant = stars[1][:, 2] < -1, stars[1][:, 1] < 3.5
    assert ((labels[..., 1] < 3.5) == giant[:, None]).all()
    assert ((labels[..., 2] < -1) == metal_poor[:, None]).all()


def test_noise_moves_an_embedding_less_than_another_star_does(stars):
    once, again, quiet = (embed(observed(stars, *told), labels=LABELS) for told in ((1,), (2,), (3, 300.0)))
    kind = np.repeat(np.arange(len(KINDS)), N_EACH)
    apart = np.linalg.norm(once[:, None] - once, axis=-1)
    others = np.median(apart[kind[:, None] == kind])
    kinds = np.median(apart[kind[:, None] != kind])
    assert np.median(np.linalg.norm(once - again, axis=1)) < 0.5 * others
    assert np.median(np.linalg.norm(once - quiet, axis=1)) < 0.5 * others
    assert others < 0.5 * kinds


# ---------------------------------------------------------------- embeddings


def test_an_embedding_holds_what_any_label_can_see_and_nothing_else():
    """Moved along a readout, a feature moves as far; moved where no label looks, it does not move at all."""
    rng = np.random.default_rng(0)
    readouts, features = rng.standard_normal((3, 8)), rng.standard_normal((1, 2, 8))
    before = embedding_of(features, readouts)
    assert before.dtype == np.float32
    assert before.shape == (1, 6)
    unseen = rng.standard_normal(8)
    unseen -= np.linalg.lstsq(readouts.T, unseen)[0] @ readouts
    np.testing.assert_allclose(embedding_of(features + unseen, readouts), before, atol=1e-5)
    step = readouts[1] / np.linalg.norm(readouts[1])
    moved = embedding_of(features + np.array([step, 0 * step]), readouts) - before
    assert np.linalg.norm(moved) == pytest.approx(1, rel=1e-5)
    assert np.abs(moved[0, 3:]).max() < 1e-5  # the feature of the other label
    across = np.eye(3)[[2, 0, 1]] + 0.1
    again = embedding_of(features, across @ readouts)  # other readouts that see the same
    assert np.linalg.norm(again) == pytest.approx(np.linalg.norm(before), rel=1e-5)
    assert embed(tiny_star(0)).shape == (1, 25)  # five labels along five readouts


def test_companions_order_of_pixels_and_padding_do_not_matter(stars):
    spectra = observed(stars, 1)[::12]
    together = embed(spectra, labels=LABELS)
    alone = np.concatenate([embed(one, labels=LABELS) for one in spectra[:2]])
    np.testing.assert_allclose(together[:2], alone, atol=1e-5)

    one = spectra[0]
    order = np.random.default_rng(0).permutation(one.flux.size)
    told = {"flux": one.flux, "wavelength": one.wavelength, "ivar": one.ivar, "resolving_power": 3000.0}
    shuffled = {name: values[order] if isinstance(values, np.ndarray) else values for name, values in told.items()}
    np.testing.assert_allclose(embed(shuffled, labels=LABELS)[0], together[0], atol=1e-5)

    labeller = Labeller(check=False)
    row = prepared(labeller.extractor, one)
    patches = {name: values.reshape(-1, labeller.extractor.patch_size) for name, values in row.items()}
    mixed = np.random.default_rng(1).permutation(len(patches["flux"]))
    rows = [row, {name: values[mixed].ravel() for name, values in patches.items()}]
    rows.append({name: values[: 5 * labeller.extractor.patch_size] for name, values in row.items()})  # padded
    asked = [labeller.extractor.label_names.index(name) for name in LABELS]
    features = ask(labeller.model, labeller.extractor, rows, 3).features[:, asked]
    found = embedding_of(features, labeller.model.head.mean_weight.detach().numpy())
    np.testing.assert_allclose(found[:2], together[[0, 0]], atol=1e-5)
    assert np.linalg.norm(found[2] - found[0]) > 1e-3  # a part of a spectrum is something else


# ---------------------------------------------------------------- catalogues with embeddings, by a tiny model


GRID = np.arange(4990.0, 5410.0, 0.9)


def tiny_star(number, name=None):
    rng = np.random.default_rng(number)
    lines = {line: depth * rng.uniform(0.3, 1.3) for line, depth in ((5168.76, 0.3), (5174.13, 0.5), (5185.05, 0.6))}
    return Spectrum(GRID, star_flux(GRID, lines), np.zeros(GRID.size, dtype=bool), name or f"star {number}", "test")


def broken():
    return Spectrum(GRID, np.full(GRID.size, np.nan), np.zeros(GRID.size, dtype=bool), BROKEN, "test")


def model_in(folder, seed=0):
    tiny_model(seed=seed).save_pretrained(folder)
    tiny_extractor().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The folder of a tiny model; 20 spectra, the third of which cannot be read; and their catalogue."""
    folder = tmp_path_factory.mktemp("tiny")
    model = model_in(folder / "model")
    spectra = [broken() if number == 2 else tiny_star(number) for number in range(20)]
    survey = written(spectra, folder / "stars")
    made = label_survey(survey, folder / "catalogue.parquet", model=model, embeddings=True, part_rows=8, progress=False)
    assert (made.rows, made.unreadable) == (20, 1)
    return model, survey, made.path


def test_a_catalogue_holds_the_embeddings_and_astropy_reads_it(tiny):
    model, survey, path = tiny
    plan = read_provenance(path)["plan"]
    assert plan["embedding"] == EMBEDDING
    table = Table.read(path)
    assert table["embedding"].shape == (20, plan["embedding size"])
    assert "of similar stars near" in table["embedding"].description
    assert str(table["teff"].unit) == "K"
    there = np.arange(20) != 2
    assert np.isnan(table["embedding"][2]).all()
    np.testing.assert_allclose(
        table["embedding"][there], embed([tiny_star(number) for number in np.flatnonzero(there)], model), atol=1e-5
    )
    with pytest.raises(ValueError, match=r"another run \(embedding: .* there, None asked"):
        label_survey(survey, path, model=model, part_rows=8, progress=False)
    with pytest.raises(ValueError, match=r"embeddings are written to \.parquet only"):
        label_survey(survey, path.with_suffix(".fits"), model=model, embeddings=True)


def test_a_table_of_neighbours_has_both_stars_with_units(tiny):
    model, _, path = tiny
    table = similar([tiny_star(5, "a"), broken(), tiny_star(7, "b")], path, n=3, model=model)
    assert table["name"].tolist() == ["a"] * 3 + ["b"] * 3
    assert table["rank"].tolist() == [1, 2, 3] * 2
    assert table["neighbour"].tolist()[::3] == ["star 5", "star 7"]
    assert table["row"].tolist()[::3] == [5, 7]
    assert (np.diff(np.array(table["distance"]).reshape(2, 3)) > 0).all()
    np.testing.assert_allclose(table["distance"][::3], 0, atol=1e-5)
    for name, unit in (("teff", "K"), ("logg", "dex"), ("fe_h", "dex")):
        for column in (name, f"{name}_sigma", f"neighbour_{name}", f"neighbour_{name}_sigma"):
            assert str(table[column].unit) == unit
        np.testing.assert_allclose(table[name][::3], table[f"neighbour_{name}"][::3], rtol=1e-4)
    catalogue = pq.read_table(path).to_pandas()
    assert np.array_equal(table["neighbour_teff"], catalogue["teff"][np.array(table["row"])])
    assert BROKEN in table.meta["unreadable"]
    assert BROKEN not in table["neighbour"].tolist()
    all_of_them = similar(tiny_star(5), path, n=19, model=model)
    assert sorted(all_of_them["row"]) == [row for row in range(20) if row != 2]


def test_answers_do_not_depend_on_blocks_or_on_how_many_are_asked(tiny, monkeypatch):
    model, _, path = tiny
    spectra = [tiny_star(number, f"asked {number}") for number in range(100, 107)]
    whole = similar(spectra, path, n=4, model=model)
    monkeypatch.setattr("spectrafm_hf.similar.BLOCK", 3)
    monkeypatch.setattr("spectrafm_hf.similar.AT_WORK", 1)
    again = similar(spectra, path, n=4, model=model)
    for column in ("row", "distance", "neighbour"):
        assert np.array_equal(whole[column], again[column]), column


def test_faiss_gives_the_same_answers(tiny):
    pytest.importorskip("faiss")
    model, _, path = tiny
    spectra = [tiny_star(number, f"asked {number}") for number in range(100, 107)]
    exact, by_faiss = (SimilarStars(path, model, faiss=faiss).near(spectra, n=19) for faiss in (False, True))
    assert exact["row"].tolist() == by_faiss["row"].tolist()
    assert np.array_equal(exact["distance"], by_faiss["distance"])


def test_without_faiss_it_is_said_how_to_get_it(tiny, monkeypatch):
    monkeypatch.setattr("spectrafm_hf.similar.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'spectrafm_hf\[similar\]'"):
        SimilarStars(tiny[2], tiny[0], faiss=True)


def test_what_cannot_be_compared_is_refused(tiny, tmp_path):
    model, survey, path = tiny
    other = model_in(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match=r"was made by the model .*model, revision .* cannot be compared"):
        similar(tiny_star(1), path, model=other)
    moved = model_in(tmp_path / "moved")  # the same weights elsewhere
    assert similar(tiny_star(1), path, n=1, model=moved)["neighbour"][0] == "star 1"
    plain = label_survey(survey, tmp_path / "plain.parquet", model=model, progress=False).path
    with pytest.raises(ValueError, match=r"plain\.parquet has no embeddings.*--embeddings"):
        similar(tiny_star(1), plain, model=model)
    foreign = tmp_path / "foreign.parquet"
    pq.write_table(pa.table({"embedding": [[1.0]]}), foreign)
    with pytest.raises(ValueError, match="was not written by spectrafm"):
        similar(tiny_star(1), foreign, model=model)
    with pytest.raises(FileNotFoundError, match="there is no catalogue"):
        similar(tiny_star(1), tmp_path / "gone.parquet", model=model)


def first_and_second(table):
    return table["neighbour"].tolist(), np.array(table["neighbour_teff"]), np.array(table["distance"])


@pytest.mark.parametrize("faiss", [False, True])
def test_any_rows_in_any_order_are_a_catalogue(faiss, tiny, tmp_path):
    """Whoever re-sorts or cuts a catalogue moves its rows; the stars stay who they are."""
    if faiss:
        pytest.importorskip("faiss")
    model, _, path = tiny
    whole, cut = pq.read_table(path), tmp_path / "cut.parquet"
    asked = [tiny_star(number) for number in (3, 9, 16)]
    expected = first_and_second(SimilarStars(path, model).near(asked, n=2))
    rng = np.random.default_rng(0)
    orders = {"backwards": np.arange(20)[::-1], "shuffled": rng.permutation(20), "twice": np.repeat(np.arange(20), 2)}
    for name, order in orders.items():
        pq.write_table(whole.take(pa.array(order)), cut, row_group_size=7)
        stars = SimilarStars(cut, model, faiss=faiss)
        assert stars.n_stars == (order != 2).sum(), name
        table = stars.near(asked, n=2)
        names, rows = table["neighbour"].tolist(), np.array(table["row"])
        assert names == [f"star {order[row]}" for row in rows], name
        if name == "twice":
            assert names == np.repeat(["star 3", "star 9", "star 16"], 2).tolist()
        else:
            assert names == expected[0], name
            np.testing.assert_array_equal(table["neighbour_teff"], expected[1], err_msg=name)
            np.testing.assert_array_equal(table["distance"], expected[2], err_msg=name)
    pq.write_table(whole.slice(4, 10).drop_columns(["row"]), cut)
    table = SimilarStars(cut, model, faiss=faiss).near(asked[1], n=10)
    assert sorted(table["neighbour"]) == sorted(f"star {number}" for number in range(4, 14))
    assert (table["neighbour"][0], table["row"][0]) == ("star 9", 5)


def test_what_a_cut_catalogue_has_lost_is_named(tiny, tmp_path):
    model, _, path = tiny
    whole, cut = pq.read_table(path), tmp_path / "cut.parquet"
    pandas_like = whole["embedding"].combine_chunks().cast(pa.list_(pa.float32()))
    lists = whole.set_column(whole.schema.get_field_index("embedding"), "embedding", pandas_like)
    for table, n, message in (
        (whole.slice(0, 10), 10, r"must be within 1 and 9, the stars of .*, got 10"),
        (whole.drop_columns(["embedding"]), 1, r"has no column embedding; .* select again and keep them"),
        (whole.drop_columns(["name", "logg_sigma"]), 1, r"has no column name, logg_sigma; "),
        (whole.slice(2, 1), 1, r"holds no star: none of its 1 spectra could be read"),
        (whole.slice(0, 0), 1, r"holds no star: it has no rows"),
        (whole.replace_schema_metadata(None), 1, r"tells no more by which model .* pandas .*pq\.write_table"),
        (lists, 1, r"must be lists of 9 numbers each .* got list<"),
    ):
        pq.write_table(table, cut)
        with pytest.raises(ValueError, match=message):
            similar(tiny_star(1), cut, n, model=model)


def test_a_selection_by_astropy_is_a_catalogue(tiny, tmp_path):
    """Astropy keeps nothing of the file but its own header, in which the model is told too."""
    model, _, path = tiny
    table, cut = Table.read(path), tmp_path / "cut.parquet"
    table.remove_columns([name for name in table.colnames if name.endswith("_learned")])  # None is not for its Parquet
    table[np.array(table["row"]) > 9][::-1].write(cut, format="parquet")
    assert read_provenance(cut) == read_provenance(path)
    found = similar([tiny_star(11), tiny_star(19)], cut, n=1, model=model)
    assert found["neighbour"].tolist() == ["star 11", "star 19"]
    assert found["row"].tolist() == [8, 0]


def test_a_catalogue_of_no_star_is_refused(tiny, tmp_path):
    survey = written([broken(), broken()], tmp_path / "none")
    path = label_survey(survey, tmp_path / "c.parquet", model=tiny[0], embeddings=True, progress=False).path
    with pytest.raises(ValueError, match="holds no star: none of its 2 spectra could be read"):
        similar(tiny_star(1), path, model=tiny[0])


@pytest.mark.parametrize("n", [0, 20])
def test_more_neighbours_than_stars_are_refused(n, tiny):
    with pytest.raises(ValueError, match=rf"must be within 1 and 19, .* got {n}"):
        similar(tiny_star(1), tiny[2], n, model=tiny[0])


def test_an_unreadable_question_says_why(tiny):
    model, _, path = tiny
    with pytest.raises(ValueError, match="can be trusted"):
        similar((np.full(GRID.size, np.nan), GRID), path, model=model)
    with pytest.raises(ValueError, match=rf"none of 2 spectra can be read, e\.g\. {BROKEN}: .*good pixel"):
        similar([broken(), broken()], path, model=model)
    with pytest.raises(FileNotFoundError):
        similar("nowhere.fits", path, model=model)
    found = embed([tiny_star(1), broken()], model)
    assert np.isnan(found[1]).all()
    assert np.isfinite(found[0]).all()


# ---------------------------------------------------------------- search


def test_blocks_hold_the_nearest_of_all():
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((500, 6)).astype(np.float32)
    vectors[300] = vectors[17]  # of equal ones, the first
    queries = vectors[[17, 40, 499]]
    ends = [0, 3, 4, 200, 500]
    blocks = ((np.arange(a, b), vectors[a:b]) for a, b in pairwise(ends))
    rows, distance = nearest(queries, blocks, 7)
    apart = np.linalg.norm(queries[:, None].astype(float) - vectors, axis=-1)
    expected = np.argsort(apart, axis=1, kind="stable")[:, :7]
    assert np.array_equal(rows, expected)
    np.testing.assert_allclose(distance, np.take_along_axis(apart, expected, 1), rtol=1e-12)
    assert rows[0, :2].tolist() == [17, 300]


def test_names_of_a_source_reach_the_table(tiny, tmp_path):
    """The name in the table is that of `read_source`."""
    model, _, path = tiny
    star = tiny_star(3)
    text = tmp_path / "my star.txt"
    np.savetxt(text, np.stack([star.wavelength, star.flux], axis=1), header="wavelength flux")
    table = similar(text, path, n=1, model=model, conventions=Conventions(medium="vacuum", velocity=0.0))
    (reading,) = read_source(text, Conventions(medium="vacuum", velocity=0.0))
    assert table["name"].tolist() == [reading.name]
    assert table["neighbour"].tolist() == ["star 3"]
