"""The paper preset is the published network: the same answers and the same gradients as an independent one."""

import pytest
import torch
from paper_oracle import WIDTH, PaperOracle, published_embed_map, published_loss, randomise

from spectrafm_hf import SpectraFMConfig, SpectraFMForLabelPrediction
from spectrafm_hf.modeling_spectrafm import WavelengthEncoding
from spectrafm_hf.spectra import apogee_wavelength

LABELS = ("teff", "logg", "o_fe", "mg_fe", "fe_h")
N_ROWS = 20
"""Padding, 14 pixels, five labels: pixels share a row, so more of them would test nothing more."""
LABEL_TOKENS = torch.arange(N_ROWS - 5, N_ROWS)


def ours_of(theirs, flux_row=1, label_rows=tuple(range(N_ROWS - 5, N_ROWS))):
    """Weights, or their gradients, of the published network under the names of ours; written out by hand."""
    ours = {
        "encoder.embeddings.pixel_projection.weight": theirs["embedding_layer.embeddings"][flux_row, :, None],
        "encoder.embeddings.pixel_projection.bias": theirs["embedding_layer.bias"][flux_row],
        "label_embeddings.weight": theirs["embedding_layer.embeddings"][list(label_rows)],
        "head.mean_weight": theirs["torch_decoder.decoder_out.weight"],
        "head.mean_bias": theirs["torch_decoder.decoder_out.bias"],
        "head.log_var_weight": theirs["torch_decoder.decoder_logvar_out.weight"],
        "head.log_var_bias": theirs["torch_decoder.decoder_logvar_out.bias"],
    }
    blocks = {f"torch_encoder.encoder_transformer_block_{n + 1}": f"encoder.layers.{n}" for n in range(2)}
    blocks |= {f"torch_decoder.decoder_transformer_block_{n + 1}": f"decoder_layers.{n}" for n in range(3)}
    for source, block in blocks.items():
        ours[f"{block}.attention.learned_key"] = theirs[f"{source}.attention.bias_k"].flatten()
        ours[f"{block}.attention.learned_value"] = theirs[f"{source}.attention.bias_v"].flatten()
        for kind in ("weight", "bias"):
            for letter, part in zip("qkv", theirs[f"{source}.attention.in_proj_{kind}"].split(WIDTH), strict=True):
                ours[f"{block}.attention.{letter}_proj.{kind}"] = part
            ours[f"{block}.attention.o_proj.{kind}"] = theirs[f"{source}.attention.out_proj.{kind}"]
            for step in ("dense_1", "dense_2"):
                ours[f"{block}.mlp.{step}.{kind}"] = theirs[f"{source}.{step}.{kind}"]
            for step in ("layernorm_1", "layernorm_2"):
                ours[f"{block}.{step}.{kind}"] = theirs[f"{source}.{step}.{kind}"]
    for number in range(4):
        for kind in ("weight", "bias"):
            ours[f"head.dense.{number}.{kind}"] = theirs[f"torch_decoder.decoder_dense_{number + 3}.{kind}"]
    return ours


def pair(precision="exact", embed_map=None, label_names=LABELS, **rows):
    """The published network with every weight at random, and ours with the same."""
    phase = torch.float64 if precision == "exact" else torch.float32
    embed_map = published_embed_map(N_ROWS) if embed_map is None else embed_map
    oracle = randomise(PaperOracle(N_ROWS, embed_map, phase), 1).eval()
    model = SpectraFMForLabelPrediction(SpectraFMConfig.paper(precision, label_names=label_names)).eval()
    model.load_state_dict(ours_of(oracle.state_dict(), **rows))
    return oracle, model


@pytest.fixture(scope="module")
def exact():
    return pair()


@pytest.fixture(scope="module")
def published():
    return pair("published")


def spectra(n_stars=3, n_pixels=512, missing=0.0, seed=0):
    """Flux, wavelength and good, of pixels of the APOGEE grid in any order."""
    generator = torch.Generator().manual_seed(seed)
    grid = torch.from_numpy(apogee_wavelength())
    order = [torch.randperm(grid.numel(), generator=generator)[:n_pixels] for _ in range(n_stars)]
    flux = torch.randn(n_stars, n_pixels, generator=generator)
    return flux, grid[torch.stack(order)], torch.rand(flux.shape, generator=generator) >= missing


def ask_oracle(oracle, flux, wavelength, good, tokens=LABEL_TOKENS, attend=None):
    """Mean and log-variance side by side; a missing pixel is the padding: token, value and wavelength 0."""
    pixels = 1 + torch.arange(flux.shape[1]) % (N_ROWS - 6)
    tokens_in = torch.where(good, pixels, 0)
    answers = oracle(
        tokens_in, flux * good, wavelength * good, torch.as_tensor(tokens).expand(len(flux), -1), attend=attend
    )
    return torch.cat(answers, dim=1)


def ask_model(model, flux, wavelength, good, **asked):
    answer = model(flux, wavelength, good.long(), **asked)
    return torch.cat([answer.label_mean, answer.label_log_var], dim=1)


def assert_close(one, other, tolerance=1e-5):
    torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


# ---------------------------------------------------------------- size


def test_eight_million_parameters_are_left_of_the_published_ones():
    """All but the embedding rows no token uses: 7,520 rows of two tables, of which flux uses two and labels five."""
    ours = SpectraFMForLabelPrediction(SpectraFMConfig.paper())
    theirs = sum(parameter.numel() for parameter in PaperOracle().parameters())
    assert theirs == 11_870_722
    assert ours.num_parameters() == 8_022_274 == theirs - (2 * 7520 - 2 - 5) * WIDTH


# ---------------------------------------------------------------- answers


@torch.no_grad()
def test_random_weights_give_answers_worth_comparing(exact):
    """Else two networks that say nothing would agree."""
    answers = ask_oracle(exact[0], *spectra())
    assert answers.std(dim=0).min() > 1e-2  # stars differ
    assert answers[:, :5].std(dim=1).min() > 1e-2  # labels differ


@torch.no_grad()
@pytest.mark.parametrize(
    ("n_stars", "n_pixels", "missing"),
    [(3, 512, 0.0), (3, 512, 0.2), (2, 1, 0.0), (1, 2, 0.0), (1, 7, 0.3), (2, 1000, 0.9)],
)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_answers_are_those_of_the_published_network(exact, n_stars, n_pixels, missing, attention):
    oracle, model = exact
    told = spectra(n_stars, n_pixels, missing)
    assert told[2].any(dim=1).all()
    model.set_attn_implementation(attention)
    try:
        assert_close(ask_model(model, *told), ask_oracle(oracle, *told))
    finally:
        model.set_attn_implementation("sdpa")


@torch.no_grad()
@pytest.mark.parametrize("label_ids", [[0], [4], [4, 0], [3, 1, 2, 0, 4], [2, 2]])
def test_any_labels_may_be_asked_for_in_any_order(exact, label_ids):
    oracle, model = exact
    told = spectra(2, 64)
    answer = ask_model(model, *told, label_ids=torch.tensor(label_ids))
    assert_close(answer, ask_oracle(oracle, *told, tokens=LABEL_TOKENS[label_ids]))


@torch.no_grad()
def test_padding_a_short_spectrum_is_padding_in_both(exact):
    oracle, model = exact
    told = spectra(3, 100)
    told[2][0, 40:] = False  # shorter than the others
    flux, wavelength, good = (torch.nn.functional.pad(part, (0, 412)) for part in told)
    answer = ask_model(model, flux, wavelength, good)
    assert_close(answer, ask_oracle(oracle, flux, wavelength, good))
    alone = [part[:1, :40] for part in told]
    assert_close(answer[:1], ask_oracle(oracle, *alone))


@torch.no_grad()
def test_a_question_sits_nowhere(exact):
    """Label queries have wavelength 0, which is encoded by zeros and not by the sines and cosines of 0 Angstrom."""
    oracle, model = exact
    nowhere = torch.zeros(1, 1, dtype=torch.float64)
    assert not oracle.embedding_layer.position(nowhere).any()
    assert not model.encoder.embeddings.encoding(nowhere).any()
    assert_close(model.label_embeddings.weight, oracle.embedding_layer.query(LABEL_TOKENS), 0)


@torch.no_grad()
def test_labels_of_a_checkpoint_may_come_in_any_order():
    """Then `label_names` follow its order, and each keeps its answer."""
    order = [4, 2, 0, 3, 1]
    oracle, model = pair(label_names=[LABELS[label] for label in order], label_rows=tuple(LABEL_TOKENS[order].tolist()))
    assert model.config.id2label[0] == "fe_h"
    told = spectra(2, 64)
    assert_close(ask_model(model, *told), ask_oracle(oracle, *told, tokens=LABEL_TOKENS[order]))


@torch.no_grad()
def test_the_row_that_pixels_share_need_not_be_the_first():
    embed_map = published_embed_map(N_ROWS)
    embed_map[1 : N_ROWS - 5] = 9
    oracle, model = pair(embed_map=embed_map, flux_row=9)
    told = spectra(2, 64)
    assert_close(ask_model(model, *told), ask_oracle(oracle, *told))
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        assert_close(ask_model(model, *told), ask_oracle(pair()[0], *told), 1e-2)


# ---------------------------------------------------------------- what the published inference did otherwise


@torch.no_grad()
def test_token_mask_repeats_attention_to_missing_pixels(exact):
    oracle, model = exact
    told = spectra(missing=0.3)
    everything = torch.ones_like(told[2])
    quirk = ask_oracle(oracle, *told, attend=everything)
    assert_close(ask_model(model, *told, token_mask=everything), quirk)
    assert (quirk - ask_oracle(oracle, *told)).abs().max() > 1e-2  # it matters


@torch.no_grad()
def test_token_mask_tells_missing_pixels_from_padding(exact):
    """The last published context: pixels, missing ones among them, then padding that alone is hidden."""
    oracle, model = exact
    told = spectra(missing=0.3)
    told[2][:, 400:] = False
    attend = (torch.arange(512) < 400).expand(3, -1)
    assert_close(ask_model(model, *told, token_mask=attend), ask_oracle(oracle, *told, attend=attend))


@torch.no_grad()
def test_published_precision_rounds_as_the_published_code_did(published):
    oracle, model = published
    told = spectra(missing=0.1)
    assert_close(ask_model(model, *told), ask_oracle(oracle, *told))


@torch.no_grad()
def test_exact_and_published_precision_differ_in_the_fourth_digit_at_most(exact, published):
    told = spectra(missing=0.1)
    difference = (ask_model(exact[1], *told) - ask_oracle(published[0], *told)).abs().max()
    assert 1e-6 < difference < 1e-4


@pytest.mark.parametrize(("precision", "tolerance"), [("published", 0.0), ("exact", 2e-7)])
def test_wavelength_encoding_is_the_published_one(precision, tolerance):
    """Every pixel of APOGEE: bit for bit in float32 phases, to float32's last digit in float64 ones."""
    phase = torch.float64 if precision == "exact" else torch.float32
    oracle = PaperOracle(N_ROWS, phase_dtype=phase).embedding_layer
    encoding = WavelengthEncoding(SpectraFMConfig.paper(precision))
    wavelength = torch.from_numpy(apogee_wavelength())[None]
    assert_close(encoding(wavelength), oracle.position(wavelength), tolerance)


# ---------------------------------------------------------------- gradients


@pytest.mark.parametrize("missing", [0.0, 0.2])
@pytest.mark.parametrize("tokens", [range(5), [3]], ids=["all labels", "one label"])
def test_loss_and_every_gradient_are_those_of_the_published_network(exact, missing, tokens):
    """One step of training, but for its dropout."""
    oracle, model = exact
    label_ids = torch.tensor(list(tokens))
    flux, wavelength, good = spectra(missing=missing)
    generator = torch.Generator().manual_seed(5)
    labels = torch.randn(len(flux), len(label_ids), generator=generator)
    errors = 0.05 + torch.rand(labels.shape, generator=generator)
    for network in (oracle, model):
        network.zero_grad()
    mean, log_var = ask_oracle(oracle, flux, wavelength, good, LABEL_TOKENS[label_ids]).chunk(2, dim=1)
    expected = published_loss(mean, log_var, labels, errors)
    loss = model(flux, wavelength, good.long(), label_ids=label_ids, labels=labels, label_errors=errors).loss
    expected.backward()
    loss.backward()
    assert_close(loss, expected)

    theirs = {name: parameter.grad for name, parameter in oracle.named_parameters()}
    wanted = ours_of(theirs)
    assert wanted.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        distance = (parameter.grad - wanted[name]).norm() / wanted[name].norm()
        assert distance < 1e-4, f"{name}: {distance:.1e}"

    used = {"embedding_layer.embeddings": [1, *LABEL_TOKENS[label_ids].tolist()], "embedding_layer.bias": [1]}
    for table, rows in used.items():  # what was left behind would never have learned
        assert theirs[table].any(dim=1).nonzero().flatten().tolist() == rows
