"""The converter: a published folder becomes one of ours, bit for bit, or is refused with nothing left behind."""

import copy
import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard, metadata_load
from paper_oracle import N_ROWS, PaperOracle, randomise
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel

import spectrafm_hf
from spectrafm_hf import SpectraFMFeatureExtractor, SpectraFMForLabelPrediction
from spectrafm_hf import convert_reference_checkpoint as converter
from spectrafm_hf.convert_reference_checkpoint import convert, main, read_checkpoint
from spectrafm_hf.spectra import apogee_wavelength

WAVELENGTH = apogee_wavelength()
PIXELS = [f"syn_apogee{number}" for number in range(7514)]
OUR_NAMES = {"TEFF": "teff", "LOGG": "logg", "O_FE": "o_fe", "MG_FE": "mg_fe", "FE_H": "fe_h"}
LABEL_NORMS = {
    "TEFF": (4750.0, 510.0),
    "LOGG": (2.6, 0.8),
    "O_FE": (0.08, 0.11),
    "MG_FE": (0.07, 0.1),
    "FE_H": (-0.15, 0.3),
}
CONTEXT = 512


@dataclass
class Published:
    """A folder as published, and what its network answers."""

    folder: Path
    oracle: PaperOracle
    config: dict
    embed_map: dict[int, int]

    @property
    def tokens(self):
        told = self.config["tokenizer_config"]
        return dict(zip(told["vocabs"], told["vocab_tokens"], strict=True))

    @property
    def columns(self):
        return [name for name in self.config["tokenizer_config"]["vocabs"] if name in OUR_NAMES]

    def standardise(self, flux, pixels):
        """Flux (n_stars, n) of these pixels -> tokens, values and wavelengths; missing pixels are padding."""
        norms = self.config["norm_config"]
        tokens = np.array([self.tokens[PIXELS[pixel]] for pixel in pixels])
        values = (flux - np.array(norms["_input_mean"])[tokens]) / np.array(norms["_input_std"])[tokens]
        with np.errstate(invalid="ignore"):
            good = (flux >= 0.05) & (flux <= 1.2) & (np.abs(values) <= 10)
        parts = np.where(good, tokens, 0), np.where(good, values, 0.0), np.where(good, WAVELENGTH[pixels], 0.0)
        return tuple(torch.from_numpy(part) for part in parts)

    @torch.no_grad()
    def answer(self, tokens, values, wavelengths, attend=None):
        """Mean and 1-sigma of each label, shape (n_stars, n_labels), standardised."""
        asked = torch.tensor([self.tokens[name] for name in self.columns]).expand(len(tokens), -1)
        mean, log_var = self.oracle(tokens, values.float(), wavelengths, asked, attend=attend)
        return mean, log_var


def write_published(folder, seed=1, shuffled=False, phase=torch.float64):
    """A checkpoint folder as published; `shuffled`: names and token numbers in any order, another row for flux."""
    rng = np.random.default_rng(seed)
    names, numbers = [*PIXELS, *OUR_NAMES], np.arange(1, N_ROWS)
    if shuffled:
        names, numbers = list(rng.permutation(names)), rng.permutation(numbers)
    tokens = dict(zip(map(str, names), numbers.tolist(), strict=True))
    flux_row = tokens["syn_apogee4000" if shuffled else "syn_apogee0"]
    embed_map = {token: token if name in OUR_NAMES else flux_row for name, token in tokens.items()} | {0: 0}
    rows = torch.tensor([embed_map[token] for token in range(N_ROWS)])
    oracle = randomise(PaperOracle(embed_map=rows, phase_dtype=phase), seed).eval()

    mean, std, standardised = np.zeros(N_ROWS), np.ones(N_ROWS), np.ones(N_ROWS, dtype=bool)
    for name, token in tokens.items():
        center, spread = LABEL_NORMS.get(name, (rng.uniform(0.8, 1.0), rng.uniform(0.004, 0.06)))
        mean[token], std[token] = center, spread
    for token in (0, tokens["syn_apogee7"]):  # the padding, and a pixel that was never standardised
        mean[token], std[token], standardised[token] = 0.0, 1.0, False
    config = {
        "nn_config": {
            "backend_framework": "torch-2.3.1",
            "context_length": CONTEXT,
            "embedding_dim": 256,
            "embedding_activation": "gelu",
            **{f"{part}_head_num": 16 for part in ("encoder", "decoder")},
            **{f"{part}_dense_num": 2048 for part in ("encoder", "decoder")},
            **{f"{part}_dropout_rate": 0.05 for part in ("encoder", "decoder")},
            **{f"{part}_activation": "gelu" for part in ("encoder", "decoder")},
        },
        "tokenizer_config": {"vocabs": list(tokens), "vocab_tokens": list(tokens.values())},
        "norm_config": {
            "_input_mean": mean.tolist(),
            "_input_std": std.tolist(),
            "_input_standardized": standardised.tolist(),
        },
    }
    published = Published(folder, oracle, config, embed_map)
    folder.mkdir()
    write_weights(folder, oracle.state_dict())
    write_config(folder, config)
    np.savez(folder / "embed_map.npz", keys=np.array(list(embed_map)), values=np.array(list(embed_map.values())))
    return published


def write_weights(folder, state, **changes):
    content = {"model_state_dict": state, "optimizer_state_dict": {}, "optimizer": "AdamW", "epoch": 325}
    torch.save(content | changes, folder / "weights.pt")


def write_config(folder, config):
    (folder / "config.json").write_text(json.dumps(config, indent=4))


@pytest.fixture(scope="session")
def paper(tmp_path_factory):
    return write_published(tmp_path_factory.mktemp("published") / "epoch_325")


@pytest.fixture(scope="session")
def converted(paper, tmp_path_factory):
    output = tmp_path_factory.mktemp("converted") / "spectrafm-apogee"
    convert(paper.folder, output)
    return output


@pytest.fixture(scope="session")
def shuffled(tmp_path_factory):
    return write_published(tmp_path_factory.mktemp("shuffled") / "epoch_10", seed=2, shuffled=True)


@pytest.fixture
def changed(paper, tmp_path):
    """A copy of the published folder to spoil: links, so that a file is replaced and never written into."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for path in paper.folder.iterdir():
        (folder / path.name).symlink_to(path)
    return folder


def stars(published, pixels, n_stars=3, seed=0):
    """Continuum-normalised flux, (n_stars, n_pixels): like the training stars, with some pixels no star can have."""
    rng = np.random.default_rng(seed)
    norms, tokens = published.config["norm_config"], [published.tokens[PIXELS[pixel]] for pixel in pixels]
    center, spread = (np.array(norms[name])[tokens] for name in ("_input_mean", "_input_std"))
    center = np.where(center == 0, 0.9, center)
    flux = center + np.minimum(spread, 0.06) * rng.standard_normal((n_stars, len(pixels)))
    spoilt = rng.random(flux.shape)
    for share, value in ((0.02, np.nan), (0.04, 0.02), (0.06, 1.3)):
        flux[(spoilt < share) & (spoilt >= share - 0.02)] = value
    flux[(spoilt > 0.98)] = (center - 11 * spread + 0 * flux)[spoilt > 0.98]  # 11 sigma too deep
    return flux


def assert_close(one, other, tolerance=1e-5):
    torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


# ---------------------------------------------------------------- what comes out


def test_a_folder_for_the_hub(converted):
    assert {path.name for path in converted.iterdir()} == {
        "model.safetensors",
        "config.json",
        "preprocessor_config.json",
        "README.md",
    }
    assert [path.name for path in converted.parent.iterdir()] == [converted.name]  # no scratch folder


@torch.no_grad()
@pytest.mark.parametrize("pixels", [np.arange(4107, 4619), np.arange(0, 7514, 15)], ids=["window", "band"])
def test_flux_in_labels_out_as_the_published_network(paper, converted, pixels):
    """Raw flux through our extractor and model; the oracle is given flux standardised by hand."""
    flux = stars(paper, pixels)
    tokens, values, wavelengths = paper.standardise(flux, pixels)
    assert 0.02 < (tokens == 0).double().mean() < 0.15  # missing pixels of each kind
    mean, log_var = paper.answer(tokens, values, wavelengths)
    extractor, model = AutoFeatureExtractor.from_pretrained(converted), AutoModel.from_pretrained(converted)
    assert not model.training
    inputs = extractor(flux, WAVELENGTH[pixels], return_tensors="pt")
    answer = model(**inputs)
    assert_close(answer.label_mean, mean)
    assert_close(answer.label_log_var, log_var)

    labels = extractor.decode_labels(answer.label_mean, answer.label_log_var)
    for number, (name, (center, spread)) in enumerate(LABEL_NORMS.items()):
        told = labels[OUR_NAMES[name]]
        np.testing.assert_allclose(told["value"], center + spread * mean[:, number].numpy(), atol=2e-5 * spread)
        np.testing.assert_allclose(told["sigma"], spread * np.exp(0.5 * log_var[:, number].numpy()), rtol=1e-5)


@torch.no_grad()
def test_names_tokens_and_rows_may_come_in_any_order(shuffled, tmp_path):
    """Labels keep the checkpoint's order, pixels their wavelengths and norms, the shared row is found."""
    assert shuffled.columns != list(OUR_NAMES)
    checkpoint = convert(shuffled.folder, tmp_path / "out")
    assert checkpoint.label_names == tuple(OUR_NAMES[name] for name in shuffled.columns)
    assert checkpoint.flux_row == shuffled.tokens["syn_apogee4000"]
    extractor, model = (
        AutoFeatureExtractor.from_pretrained(tmp_path / "out"),
        AutoModel.from_pretrained(tmp_path / "out"),
    )
    assert tuple(model.config.label_names) == tuple(extractor.label_names) == checkpoint.label_names
    pixels = np.arange(100, 7514, 29)
    flux = stars(shuffled, pixels)
    mean, log_var = shuffled.answer(*shuffled.standardise(flux, pixels))
    answer = model(**extractor(flux, WAVELENGTH[pixels], return_tensors="pt"))
    assert_close(answer.label_mean, mean)
    assert_close(answer.label_log_var, log_var)
    for name, center, scale in zip(shuffled.columns, extractor.label_center, extractor.label_scale, strict=True):
        assert (center, scale) == LABEL_NORMS[name]


def test_norms_are_those_of_the_file_digit_for_digit(paper, converted):
    extractor = AutoFeatureExtractor.from_pretrained(converted)
    norms = paper.config["norm_config"]
    assert extractor.flux_center == norms["_input_mean"][1:7515]
    assert extractor.flux_scale == norms["_input_std"][1:7515]
    assert (extractor.flux_center[7], extractor.flux_scale[7]) == (0.0, 1.0)  # never standardised
    assert extractor.flux_wavelength == WAVELENGTH.tolist()
    assert (extractor.flux_range, extractor.largest_scaled) == ([0.05, 1.2], 10.0)  # as the data were cleaned
    edges = [10 ** (4.179 + 6e-6 * pixel) for pixel in (245.5, 8334.5)]
    assert extractor.wavelength_range == pytest.approx(edges, abs=0.01)


def test_every_parameter_is_a_published_one(paper, converted):
    """And none is left as it was initialised: the values of both, sorted, are the same numbers."""
    ours = torch.cat([value.flatten() for value in AutoModel.from_pretrained(converted).state_dict().values()])
    theirs = paper.oracle.state_dict()
    labels = [paper.tokens[name] for name in paper.columns]
    rows = [theirs.pop("embedding_layer.embeddings")[[1, *labels]], theirs.pop("embedding_layer.bias")[1]]
    theirs = torch.cat([value.flatten() for value in (*theirs.values(), *rows)])
    assert torch.equal(ours.sort().values, theirs.sort().values)


@torch.no_grad()
def test_published_precision_is_asked_for_by_name(paper, converted, tmp_path):
    convert(paper.folder, tmp_path / "out", "published")
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert tuple(config.float32_phase) == (2000.0, 1000.0)
    assert AutoConfig.from_pretrained(converted).float32_phase is None
    oracle = PaperOracle(phase_dtype=torch.float32).eval()
    oracle.load_state_dict(paper.oracle.state_dict())
    pixels = np.arange(0, 7514, 17)
    told = paper.standardise(stars(paper, pixels), pixels)
    mean, _ = Published(paper.folder, oracle, paper.config, paper.embed_map).answer(*told)
    model = AutoModel.from_pretrained(tmp_path / "out")
    assert_close(model(told[1].float(), told[2], (told[0] > 0).long()).label_mean, mean)


def test_dropout_of_the_training_is_carried(paper, changed, tmp_path):
    replace_config(
        changed, paper.config, lambda c: c["nn_config"].update(encoder_dropout_rate=0.1, decoder_dropout_rate=0.1)
    )
    convert(changed, tmp_path / "out")
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert config.hidden_dropout == config.attention_dropout == 0.1


def test_prefix_of_a_distributed_training_changes_nothing(paper, converted, changed, tmp_path):
    replace_weights(changed, paper, lambda state: {f"module.{name}": value for name, value in state.items()})
    convert(changed, tmp_path / "out")
    assert digests(tmp_path / "out")["model.safetensors"] == digests(converted)["model.safetensors"]


def test_converting_again_gives_the_same_bytes(paper, converted, tmp_path):
    convert(paper.folder, tmp_path / "elsewhere")
    assert digests(tmp_path / "elsewhere") == digests(converted)


def test_a_checkpoint_of_fewer_labels_converts(paper, changed, tmp_path):
    """Teff alone, say; the tables of the embedding are then as many rows shorter."""

    def teff_alone(config):
        config["tokenizer_config"] = {"vocabs": [*PIXELS, "TEFF"], "vocab_tokens": list(range(1, 7516))}
        for name, values in config["norm_config"].items():
            config["norm_config"][name] = values[:7516]

    replace_config(changed, paper.config, teff_alone)
    replace_weights(
        changed, paper, lambda s: {name: v[:7516] if "embedding_layer" in name else v for name, v in s.items()}
    )
    keys = np.arange(7516)
    replace_embed_map(changed, keys, np.where((keys > 0) & (keys < 7515), 1, keys))
    assert convert(changed, tmp_path / "out").label_names == ("teff",)
    assert torch.equal(
        AutoModel.from_pretrained(tmp_path / "out").label_embeddings.weight[0],
        paper.oracle.embedding_layer.embeddings[7515],
    )


# ---------------------------------------------------------------- the card


def test_card_says_where_the_weights_come_from(paper, converted):
    data = ModelCard.load(converted / "README.md").data
    assert metadata_load(converted / "README.md") == data.to_dict()
    assert data.license == "other"
    assert data.license_link == "https://zenodo.org/records/14041360"
    assert (data.library_name, data.pipeline_tag) == ("transformers", "tabular-regression")
    text = (converted / "README.md").read_text()
    assert hashlib.sha256((paper.folder / "weights.pt").read_bytes()).hexdigest() in text
    for fact in (
        "14041360",
        "2411.04750",
        "epoch 325",
        "8,022,274",
        "15152-16944",
        "| [Fe/H] (`fe_h`) | dex | -0.15 | 0.3 |",
    ):
        assert fact in text, fact
    assert "| Teff (`teff`) | K | 4750 | 510 |" in text
    assert "{{" not in text


@pytest.fixture
def card_code(converted):
    return [code.replace("REPO_OR_FOLDER", str(converted)) for code in python_blocks(converted / "README.md")]


def python_blocks(path):
    return re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.DOTALL)


def test_code_of_the_card_repeats_the_published_inference(paper, card_code, capsys):
    """Contexts of pixels shuffled once, the last one padded; missing pixels attended to as zero vectors; plain means.

    On the first half of the band, as for the second network of the paper.
    """
    pixels, n_contexts = np.arange(3757), 8
    flux = stars(paper, pixels, n_stars=1)[0]
    told = {"flux": flux, "wavelength": WAVELENGTH[pixels]}
    for code in card_code:
        exec(code, told)
    order = np.random.RandomState(0).permutation(3757)
    contexts = [
        torch.nn.functional.pad(part[0, order], (0, n_contexts * 512 - 3757)).reshape(n_contexts, 512)
        for part in paper.standardise(flux[None], pixels)
    ]
    attend = torch.arange(n_contexts * 512).reshape(n_contexts, 512) < 3757
    mean, log_var = paper.answer(*contexts, attend=attend)
    hidden, _ = paper.answer(*(part[:1] for part in contexts))
    assert (mean[:1] - hidden).abs().max() > 1e-3  # attending to missing pixels matters
    sigma = (0.5 * log_var).exp().mean(dim=0)
    for number, (center, spread) in enumerate(LABEL_NORMS.values()):
        value = center + spread * mean[:, number].mean().item()
        np.testing.assert_allclose(told["answer"].mean[0, number], value, atol=2e-5 * spread)
        np.testing.assert_allclose(told["answer"].sigma[0, number], spread * sigma[number].item(), rtol=2e-5)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[:5]] == list(OUR_NAMES.values())


# ---------------------------------------------------------------- what is refused


def replace_config(folder, config, change):
    config = copy.deepcopy(config)
    change(config)
    (folder / "config.json").unlink()
    write_config(folder, config)


def replace_weights(folder, published, change, **changes):
    (folder / "weights.pt").unlink()
    state = dict(published.oracle.state_dict())
    write_weights(folder, change(state) or state, **changes)


def replace_embed_map(folder, keys, values):
    (folder / "embed_map.npz").unlink()
    np.savez(folder / "embed_map.npz", keys=keys, values=values)


def assert_refused(folder, tmp_path, message, error=ValueError):
    """With this sentence, and nothing is left where the output would have been."""
    place = tmp_path / "outputs"
    place.mkdir(exist_ok=True)
    with pytest.raises(error, match=message) as refusal:
        convert(folder, place / "out")
    assert list(place.iterdir()) == []
    return str(refusal.value)


@pytest.mark.parametrize("name", ["weights.pt", "config.json", "embed_map.npz"])
def test_a_missing_file_is_named(changed, tmp_path, name):
    (changed / name).unlink()
    assert_refused(changed, tmp_path, f"but {name} is missing", FileNotFoundError)


def test_a_missing_folder_is_named(tmp_path):
    assert_refused(tmp_path / "nowhere", tmp_path, "nowhere must hold weights.pt", FileNotFoundError)


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("embedding_dim", 128, "must have embedding_dim 256, got 128"),
        ("encoder_head_num", 8, "encoder_head_num 16, got 8"),
        ("decoder_dense_num", 1024, "decoder_dense_num 2048, got 1024"),
        ("encoder_activation", "relu", "encoder_activation gelu, got 'relu'"),
        ("embedding_activation", None, "embedding_activation gelu, got None"),
        ("context_length", "512", "context_length in config.json must be a number of pixels, got '512'"),
        ("encoder_dropout_rate", 0.1, "must be one number from 0 to 1, .* got 0.1 and 0.05"),
        ("decoder_dropout_rate", 1.5, "got 0.05 and 1.5"),
        ("decoder_dropout_rate", "none", "got 0.05 and 'none'"),
    ],
)
def test_another_architecture_is_refused(paper, changed, tmp_path, entry, value, message):
    replace_config(changed, paper.config, lambda config: config["nn_config"].update({entry: value}))
    assert_refused(changed, tmp_path, message)


def rename(config, number, name):
    config["tokenizer_config"]["vocabs"][number] = name


def renumber(config, number, token):
    config["tokenizer_config"]["vocab_tokens"][number] = token


def norm(config, name, token, value):
    config["norm_config"][name][token] = value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["nn_config"].pop("embedding_dim"), "nn_config in config.json lacks embedding_dim"),
        (lambda c: c.pop("norm_config"), "must hold norm_config .* got nn_config, tokenizer_config"),
        (lambda c: c.update(nn_config=[]), "must hold nn_config"),
        (lambda c: c["tokenizer_config"]["vocabs"].pop(), "two lists of one length, got 7518 and 7519"),
        (lambda c: c["tokenizer_config"].pop("vocabs"), "two lists of one length, got None and 7519"),
        (lambda c: rename(c, 7514, "AL_FE"), "vocabs has AL_FE, .* labels TEFF, LOGG, FE_H, MG_FE, O_FE"),
        (lambda c: rename(c, 12, "real_apogee12"), "vocabs has real_apogee12, which this converter cannot place"),
        (lambda c: rename(c, 12, "syn_apogee7514"), "vocabs has syn_apogee7514.* syn_apogee0 to syn_apogee7513"),
        (lambda c: rename(c, 12, 12), "vocabs has 12, which"),
        (lambda c: rename(c, 12, "syn_apogee13"), "got twice: syn_apogee13"),
        (lambda c: rename(c, 7515, "TEFF"), "got twice: TEFF"),
        (
            lambda c: c["tokenizer_config"].update(vocabs=[*PIXELS[9:], "TEFF"], vocab_tokens=list(range(1, 7507))),
            "must name all 7514 pixels of APOGEE, syn_apogee0, .* syn_apogee4 and 4 more missing",
        ),
        (
            lambda c: c["tokenizer_config"].update(vocabs=PIXELS, vocab_tokens=list(range(1, 7515))),
            "names pixels alone",
        ),
        (lambda c: renumber(c, 3, 0), "vocab_tokens must be the numbers 1 to 7519, each once, got 0"),
        (lambda c: renumber(c, 3, 5), "each once, got 5"),
        (lambda c: renumber(c, 3, 4.5), "each once, got 4.5"),
        (lambda c: renumber(c, 3, True), "each once, got True"),
        (lambda c: c["norm_config"]["_input_mean"].pop(), "_input_mean .* 7520 numbers, .* got 7519 entries"),
        (lambda c: c["norm_config"].pop("_input_std"), "_input_std .* got NoneType"),
        (lambda c: norm(c, "_input_standardized", 9, 1), "_input_standardized .* booleans"),
        (lambda c: norm(c, "_input_mean", 9, "1"), "_input_mean .* 7520 numbers"),
        (lambda c: norm(c, "_input_mean", 9, float("nan")), "norms must be finite, .* got nan and .* for token 9"),
        (lambda c: norm(c, "_input_std", 7519, 0.0), "_input_std positive, got -0.15 and 0.0 for token 7519"),
        (lambda c: norm(c, "_input_std", 2, -0.1), "for token 2"),
    ],
)  # fmt: skip
def test_a_config_that_is_not_as_published_is_refused(paper, changed, tmp_path, change, message):
    replace_config(changed, paper.config, change)
    assert_refused(changed, tmp_path, message)


def test_norms_of_the_padding_and_of_what_was_not_standardised_are_ignored(paper, changed):
    def spoil(config):
        for token in (0, 8):  # token 8 is syn_apogee7
            norm(config, "_input_mean", token, float("nan"))
            norm(config, "_input_std", token, 0.0)
        norm(config, "_input_standardized", 0, True)

    replace_config(changed, paper.config, spoil)
    norms = read_checkpoint(changed).flux_norms
    assert (norms.center[7], norms.scale[7]) == (0.0, 1.0)


@pytest.mark.parametrize("content", ["", "{", "[1]", '"nn_config"', "\udcff"])
def test_a_config_that_is_no_json_is_refused(changed, tmp_path, content):
    (changed / "config.json").unlink()
    (changed / "config.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    assert_refused(changed, tmp_path, "config.json (is not JSON|must hold nn_config)")


def published_map():
    keys = np.arange(N_ROWS)
    return keys, np.where((keys > 0) & (keys < 7515), 1, keys)


def with_rows(**changes):
    keys, values = published_map()
    for token, row in changes.items():
        values[int(token.removeprefix("t"))] = row
    return keys, values


@pytest.mark.parametrize(
    ("embed_map", "message"),
    [
        (with_rows(t5=5), "all pixels must share one row of the embedding, got 2 .* by their wavelength alone"),
        ((np.arange(N_ROWS), np.arange(N_ROWS)), "got 7514 in embed_map.npz"),
        (with_rows(t7516=1), "rows of their own, but flux, LOGG share"),
        (with_rows(t7516=7515), "but TEFF, LOGG share"),
        (with_rows(t7516=0), "but padding, LOGG share"),
        (with_rows(t0=1), "padding .token 0. must have row 0 in embed_map.npz, got 1"),
        (with_rows(t7516=N_ROWS), "must be rows 0 to 7519, got 0 to 7520"),
        (with_rows(t7516=-1), "must be rows 0 to 7519, got -1 to"),
        ([part[1:] for part in published_map()], "tokens 0 to 7519, each once; missing: 0; too many: none"),
        ([np.append(part, 7) for part in published_map()], "missing: none; too many: 7"),
        ([np.append(part, 7520) for part in published_map()], "missing: none; too many: 7520"),
        ([part.astype(float) for part in published_map()], "must be whole numbers, .* got float64"),
        ([part[None] for part in published_map()], r"1-D and of one length, got int64 \(1, 7520\)"),
        ((np.arange(N_ROWS), np.arange(3)), r"of one length, got int64 \(7520,\) and int64 \(3,\)"),
    ],
)  # fmt: skip
def test_an_embed_map_that_our_model_cannot_say_is_refused(changed, tmp_path, embed_map, message):
    replace_embed_map(changed, *embed_map)
    assert_refused(changed, tmp_path, message)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", b"plain text"])
@pytest.mark.parametrize("name", ["weights.pt", "embed_map.npz"])
def test_damaged_files_are_refused(changed, tmp_path, name, content):
    (changed / name).unlink()
    (changed / name).write_bytes(content)
    assert_refused(changed, tmp_path, f"{name} (is damaged|must hold two arrays)")


def test_an_embed_map_without_its_arrays_is_refused(changed, tmp_path):
    (changed / "embed_map.npz").unlink()
    np.savez(changed / "embed_map.npz", keys=np.arange(N_ROWS))
    assert_refused(changed, tmp_path, "must hold two arrays of whole numbers, keys and values")


QUERY = "torch_encoder.encoder_transformer_block_1.attention.in_proj_weight"
TABLE = "embedding_layer.embeddings"


def without(state, name):
    return {key: value for key, value in state.items() if key != name}


def spoilt(state, name, index, value):
    tensor = state[name].clone()
    tensor[index] = value
    return state | {name: tensor}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: without(s, QUERY), f"missing: {QUERY}; not known: none"),
        (lambda s: without(s, "torch_decoder.decoder_out.bias"), "missing: torch_decoder.decoder_out.bias"),
        (lambda s: s | {"extra.weight": torch.ones(1)}, "missing: none; not known: extra.weight"),
        (lambda s: s | {f"module.{QUERY}": s[QUERY]}, "with and without the prefix `module.`"),
        (lambda s: s | {QUERY: s[QUERY].T}, rf"{QUERY} .*float32 \(768, 256\), got torch.float32 \(256, 768\)"),
        (lambda s: s | {QUERY: s[QUERY].double()}, r"must be torch.float32 \(768, 256\), got torch.float64"),
        (lambda s: s | {TABLE: s[TABLE][:7000]}, rf"{TABLE} .* \(7520, 256\), got torch.float32 \(7000, 256\)"),
        (lambda s: s | {TABLE: 7}, f"{TABLE} .* got int"),
        (lambda s: spoilt(s, QUERY, (3, 4), float("nan")), f"must be finite, got NaN or infinity in {QUERY}"),
        (lambda s: spoilt(s, TABLE, (3, 4), float("inf")), f"infinity in {TABLE}"),
        (lambda s: spoilt(s, "embedding_layer.bias", (0, 4), 0.1), "row 0 of .* must be zeros"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_refused(paper, changed, tmp_path, change, message):
    replace_weights(changed, paper, change)
    assert_refused(changed, tmp_path, message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3}, "dictionary with model_state_dict and epoch, got epoch"),
        ({"model_state_dict": {}}, "dictionary with model_state_dict and epoch, got model_state_dict"),
        (torch.ones(3), "dictionary with model_state_dict and epoch, got Tensor"),
        ({"model_state_dict": torch.ones(3), "epoch": 3}, "must map names to tensors, got Tensor"),
        ({"model_state_dict": {1: torch.ones(3)}, "epoch": 3}, "must map names to tensors"),
        ({"model_state_dict": {}, "epoch": "last"}, "epoch in weights.pt must be a whole number, got 'last'"),
    ],
)
def test_weights_that_are_no_checkpoint_are_refused(changed, tmp_path, content, message):
    (changed / "weights.pt").unlink()
    torch.save(content, changed / "weights.pt")
    assert_refused(changed, tmp_path, message)


# ---------------------------------------------------------------- strangers' files


class Trap:
    """Unpickling it runs a command, here one that leaves a file."""

    def __init__(self, sprung):
        self.sprung = sprung

    def __reduce__(self):
        return os.system, (f"touch {self.sprung}",)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])
def test_code_in_weights_does_not_run(paper, changed, tmp_path, zipped):
    path, sprung = changed / "weights.pt", tmp_path / "sprung"
    path.unlink()
    content = {"model_state_dict": {QUERY: Trap(sprung)}, "epoch": 325}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    told = assert_refused(changed, tmp_path, "more than tensors and plain values, so that opening it could run code")
    assert not sprung.exists()
    assert "weights_only" not in told  # torch's own advice is to switch the guard off
    torch.load(path, weights_only=False)
    assert sprung.exists()  # the trap was a live one


@pytest.mark.parametrize("name", ["keys", "values"])
def test_code_in_an_embed_map_does_not_run(changed, tmp_path, name):
    path, sprung = changed / "embed_map.npz", tmp_path / "sprung"
    path.unlink()
    arrays = dict(zip(("keys", "values"), published_map(), strict=True)) | {
        name: np.array([Trap(sprung)], dtype=object)
    }
    np.savez(path, **arrays)
    assert_refused(changed, tmp_path, "Object arrays are pickles and are not opened")
    assert not sprung.exists()
    with np.load(path, allow_pickle=True) as archive:
        archive[name]
    assert sprung.exists()


def test_no_other_file_of_the_package_opens_a_pickle():
    package = Path(spectrafm_hf.__file__).parent
    opens = re.compile(
        r"torch\.load\(|pickle\.loads?\(|allow_pickle=True|weights_only=False|import joblib|joblib\.load"
    )
    found = {path.name: opens.findall(path.read_text()) for path in package.rglob("*.py")}
    assert {name: calls for name, calls in found.items() if calls} == {
        "convert_reference_checkpoint.py": ["torch.load(", "weights_only=False"]  # the latter in a comment
    }
    assert re.findall(r"torch\.load\(.*", Path(converter.__file__).read_text()) == [
        'torch.load(path, map_location="cpu", weights_only=True)'
    ]


# ---------------------------------------------------------------- whole or not at all


def test_a_folder_that_holds_something_is_left_alone(paper, tmp_path):
    for output in (tmp_path / "full", tmp_path / "file"):
        if output.name == "full":
            output.mkdir()
            (output / "mine.txt").write_text("mine")
        else:
            output.write_text("mine")
        with pytest.raises(FileExistsError, match=f"{output} must be a new or an empty folder"):
            convert(paper.folder, output)
    assert (tmp_path / "full" / "mine.txt").read_text() == (tmp_path / "file").read_text() == "mine"


def test_an_empty_folder_is_filled_and_parents_are_made(paper, converted, tmp_path):
    output = tmp_path / "empty"
    output.mkdir()
    convert(paper.folder, output)
    assert digests(output) == digests(converted)
    convert(paper.folder, tmp_path / "new" / "deep")
    assert digests(tmp_path / "new" / "deep") == digests(converted)


def test_a_disk_that_fills_up_leaves_nothing(paper, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SpectraFMFeatureExtractor, "save_pretrained", full)  # the weights are written by then
    assert_refused(paper.folder, tmp_path, "No space left", OSError)


def test_what_reads_back_otherwise_is_not_handed_over(paper, tmp_path, monkeypatch):
    def save_with_a_flipped_sign(model, folder):
        with torch.no_grad():
            model.head.mean_bias.neg_()
        save(model, folder)

    save = SpectraFMForLabelPrediction.save_pretrained
    monkeypatch.setattr(SpectraFMForLabelPrediction, "save_pretrained", save_with_a_flipped_sign)
    assert_refused(paper.folder, tmp_path, "reads back otherwise than it was written: head.mean_bias", RuntimeError)


# ---------------------------------------------------------------- the command


def run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["convert_reference_checkpoint", *map(str, arguments)])
    main()


def test_command_converts_and_says_so(paper, converted, tmp_path, monkeypatch, capsys):
    run(monkeypatch, paper.folder, tmp_path / "out")
    assert digests(tmp_path / "out") == digests(converted)
    told = capsys.readouterr().out
    assert "epoch 325, labels teff, logg, o_fe, mg_fe, fe_h, exact phases" in told
    assert len(told.splitlines()) == 3


def test_command_takes_the_precision(paper, tmp_path, monkeypatch):
    run(monkeypatch, paper.folder, tmp_path / "out", "--precision", "published")
    assert AutoConfig.from_pretrained(tmp_path / "out").float32_phase is not None
    assert "This folder does so too." in (tmp_path / "out" / "README.md").read_text()
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(SystemExit) as refusal:
        run(monkeypatch, paper.folder, tmp_path / "out", "--precision", "double")
    assert refusal.value.code == 2


def test_command_explains_in_a_sentence(changed, tmp_path, monkeypatch):
    (changed / "embed_map.npz").unlink()
    with pytest.raises(SystemExit, match=r"error: .* but embed_map\.npz is missing"):
        run(monkeypatch, changed, tmp_path / "out")
    assert not (tmp_path / "out").exists()
