"""The model: what must not matter does not matter, missing labels cost nothing, and a saved model is the same model."""

import copy
from unittest.mock import patch

import numpy as np
import pytest
import torch
from conftest import PATCH_SIZE, random_batch, tiny_config, tiny_model
from huggingface_hub.errors import StrictDataclassError
from torch.utils.data import Dataset
from transformers import AutoConfig, AutoModel, Trainer, TrainingArguments

from spectrafm_hf import SpectraFMConfig, SpectraFMForLabelPrediction, SpectraFMModel, modeling_spectrafm
from spectrafm_hf.modeling_spectrafm import SpectraFMLabelOutput, WavelengthEncoding, gaussian_nll

N_LABELS = 3


def answer(model, batch, **asked):
    """Mean and log-variance side by side, shape (batch, 2 n_labels)."""
    with torch.no_grad():
        output = model(**batch, **asked)
    return torch.cat([output.label_mean, output.label_log_var], dim=-1)


def assert_same(one, other, tolerance=1e-5):
    torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


def some_labels(n_spectra, seed=0):
    """Scaled labels with a third missing (-100), and their errors."""
    rng = np.random.default_rng(seed)
    labels = rng.normal(size=(n_spectra, N_LABELS))
    labels[rng.random(labels.shape) < 1 / 3] = -100
    errors = rng.uniform(0.02, 0.3, labels.shape)
    return torch.from_numpy(labels).float(), torch.from_numpy(errors).float()


def gradients(model, **batch):
    model.zero_grad()
    model(**batch).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# ---------------------------------------------------------------- what must not matter


def test_spectra_and_labels_are_told_apart(model, batch):
    """Else the invariances below would hold for a model that ignores its input."""
    mean = model(**batch).label_mean
    assert mean.std(dim=0).min() > 1e-2
    assert (mean[:, 0] - mean[:, 1]).abs().max() > 1e-2


def test_order_of_tokens_carries_nothing(model, batch):
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    assert not torch.equal(order, torch.arange(6))
    shuffled = {key: value.unflatten(1, (6, PATCH_SIZE))[:, order].flatten(1) for key, value in batch.items()}
    assert_same(answer(model, shuffled), answer(model, batch))


def test_wavelength_of_a_token_matters(model, batch):
    """A line at another wavelength is another line."""
    moved = batch | {"wavelength": batch["wavelength"].flip(1)}
    assert (answer(model, moved) - answer(model, batch)).abs().max() > 1e-2


def test_single_pixel_tokens_may_come_in_any_order():
    model, batch = tiny_model(patch_size=1), random_batch(n_tokens=2)
    order = torch.randperm(2 * PATCH_SIZE, generator=torch.Generator().manual_seed(1))
    assert_same(answer(model, {key: value[:, order] for key, value in batch.items()}), answer(model, batch))


def test_padding_carries_nothing(model, batch):
    padded = {key: torch.nn.functional.pad(value, (0, 3 * PATCH_SIZE)) for key, value in batch.items()}
    padded["flux"][:, -3 * PATCH_SIZE :] = 7.0
    assert_same(answer(model, padded), answer(model, batch))


def test_single_equals_in_batch(model, batch):
    together = answer(model, batch)
    for row in range(4):
        alone = answer(model, {key: value[row : row + 1] for key, value in batch.items()})
        assert_same(alone[0], together[row])


def test_eager_equals_sdpa(model, batch):
    assert model.config._attn_implementation == "sdpa"
    with_sdpa = answer(model, batch)
    model.set_attn_implementation("eager")
    assert_same(answer(model, batch), with_sdpa)


@pytest.mark.parametrize("label_ids", [[2], [0, 2], [2, 1, 0]])
def test_a_label_does_not_depend_on_what_else_is_asked(model, batch, label_ids):
    everything, asked = model(**batch), model(**batch, label_ids=torch.tensor(label_ids))
    assert_same(asked.label_mean, everything.label_mean[:, label_ids])
    assert_same(asked.label_log_var, everything.label_log_var[:, label_ids])
    assert_same(asked.label_features, everything.label_features[:, label_ids])


def test_each_spectrum_may_be_asked_for_labels_of_its_own(model, batch):
    asked = model(**batch, label_ids=torch.tensor([[0], [1], [2], [0]])).label_mean[:, 0]
    assert_same(asked, model(**batch).label_mean[torch.arange(4), torch.tensor([0, 1, 2, 0])])


@pytest.mark.parametrize("value", [1e30, -1e30, float("nan"), float("inf")])
def test_flux_of_a_missing_pixel_does_not_matter(model, batch, value):
    labels, errors = some_labels(4)
    clean = gradients(model, **batch, labels=labels, label_errors=errors)
    spoilt = batch | {"flux": torch.where(batch["attention_mask"].bool(), batch["flux"], value)}
    assert torch.equal(answer(model, spoilt), answer(model, batch))
    for name, gradient in gradients(model, **spoilt, labels=labels, label_errors=errors).items():
        assert torch.equal(gradient, clean[name]), name


def test_a_missing_pixel_is_not_a_measured_zero(model, batch):
    batch["flux"][1, 3], batch["attention_mask"][1, :PATCH_SIZE] = 0.0, 1
    missing = batch["attention_mask"].clone()
    missing[1, 3] = 0
    difference = answer(model, batch | {"attention_mask": missing}) - answer(model, batch)
    assert difference[1].abs().max() > 1e-3
    assert not difference[[0, 2, 3]].any()


def test_no_mask_means_all_good(model, batch):
    told = batch | {"attention_mask": torch.ones_like(batch["attention_mask"])}
    assert torch.equal(answer(model, {key: batch[key] for key in ("flux", "wavelength")}), answer(model, told))


# ---------------------------------------------------------------- bad inputs


def test_spectrum_without_a_good_pixel_is_refused(model, batch):
    """Attention to nothing would answer NaN, or something that looks like an answer."""
    batch["attention_mask"][2] = 0
    with pytest.raises(ValueError, match=r"good pixel.*2"):
        model(**batch)
    with pytest.raises(ValueError, match="good pixel"):
        model.encoder(**batch)


def test_pixels_that_fill_no_whole_token_are_refused(model, batch):
    with pytest.raises(ValueError, match="multiple of patch_size 16"):
        model(**{key: value[:, :-1] for key, value in batch.items()})


def test_flux_and_wavelength_must_fit(model, batch):
    with pytest.raises(ValueError, match="share a shape"):
        model(**batch | {"wavelength": batch["wavelength"][:, :-PATCH_SIZE]})


@pytest.mark.parametrize("name", ["attention_mask", "flux_error", "resolving_power"])
@pytest.mark.parametrize("shape", [(4, 1), (4, 95), (3,), ()])
def test_what_is_said_of_pixels_must_come_one_per_pixel(model, batch, name, shape):
    """Broadcasting would take one number of a spectrum for that of all its pixels, or of another spectrum."""
    with pytest.raises(ValueError, match=rf"{name} must have the shape of flux \(4, 96\)"):
        model(**batch | {name: torch.ones(shape)})


def test_wavelengths_of_half_precision_are_warned_of(model, batch):
    """8 to 64 Angstrom are lost."""
    with patch.object(modeling_spectrafm.logger, "warning_once") as warned:
        model(**batch)
        assert not warned.called
        model(**batch | {"wavelength": batch["wavelength"].bfloat16()})
    assert "Keep it in float64" in warned.call_args.args[0]


def test_padding_needs_no_mask(model, batch):
    """A wavelength of 0 says that there is no pixel."""
    bare = {"flux": batch["flux"], "wavelength": batch["wavelength"]}
    padded = {key: torch.nn.functional.pad(value, (0, 2 * PATCH_SIZE)) for key, value in bare.items()}
    assert_same(answer(model, padded), answer(model, bare))


@pytest.mark.parametrize("value", [float("nan"), -5000.0, 0.0])
def test_wavelength_of_a_missing_pixel_may_be_nonsense(model, batch, value):
    spoilt = batch["wavelength"].clone()
    spoilt[0, PATCH_SIZE : 2 * PATCH_SIZE] = value  # all of the token that is missing in spectrum 0
    assert_same(answer(model, batch | {"wavelength": spoilt}), answer(model, batch))


@pytest.mark.parametrize("label_ids", [[3], [-1], [[0], [1]], 0])
def test_label_ids_must_be_labels(model, batch, label_ids):
    with pytest.raises(ValueError, match=r"rows of config.label_names .*0 to 2.*got .* for 4 spectra"):
        model(**batch, label_ids=torch.tensor(label_ids))


def test_labels_must_fit_the_labels_asked_for(model, batch):
    with pytest.raises(ValueError, match=r"\(4, 1\), got \(4, 3\)"):
        model(**batch, label_ids=torch.tensor([2]), labels=torch.zeros(4, 3))


# ---------------------------------------------------------------- likelihood


def test_likelihood_is_the_gaussian_one():
    generator = torch.Generator().manual_seed(0)
    mean, log_var, labels = (torch.randn(5, N_LABELS, generator=generator) for _ in range(3))
    errors = torch.rand(5, N_LABELS, generator=generator) + 0.1
    spread = (log_var.exp() + errors**2).sqrt()
    expected = -torch.distributions.Normal(mean, spread).log_prob(labels).mean() - 0.5 * np.log(2 * np.pi)
    torch.testing.assert_close(gaussian_nll(mean, log_var, labels, errors), expected)


def test_likelihood_of_one_label_by_hand():
    """Residual 2, own variance 3, published variance 1: 0.5 (4 / 4 + ln 4)."""
    nll = gaussian_nll(*(torch.tensor([[value]]) for value in (1.0, np.log(3.0), 3.0, 1.0)))
    assert nll.item() == pytest.approx(0.5 * (1 + np.log(4)), rel=1e-6)


@pytest.mark.parametrize("missing", [float("nan"), -100.0])
def test_missing_labels_cost_nothing(model, batch, missing):
    labels, errors = some_labels(4)
    written = torch.where(labels == -100, missing, labels)
    with torch.no_grad():
        output = model(**batch, labels=written, label_errors=errors)
    there = labels != -100
    expected = gaussian_nll(output.label_mean[there], output.label_log_var[there], labels[there], errors[there])
    torch.testing.assert_close(output.loss, expected)
    found = gradients(model, **batch, labels=written, label_errors=errors)
    assert all(gradient.isfinite().all() for gradient in found.values())
    for name, gradient in gradients(model, **batch, labels=labels, label_errors=errors).items():
        assert torch.equal(gradient, found[name]), name


def test_a_label_missing_everywhere_moves_nothing_of_its_own(model, batch):
    labels = torch.tensor([[float("nan"), 0.5, float("nan")]] * 4)
    found = gradients(model, **batch, labels=labels)
    for name in ("mean_weight", "mean_bias", "log_var_weight", "log_var_bias"):
        moved = found[f"head.{name}"].reshape(N_LABELS, -1).abs().sum(dim=1)
        assert moved[1] > 0
        assert moved[0] == moved[2] == 0


def test_all_labels_missing_is_a_zero_loss(model, batch):
    loss = model(**batch, labels=torch.full((4, 3), float("nan"))).loss
    assert loss.item() == 0


@pytest.mark.parametrize("error", [0.0, float("nan"), -1.0, float("inf")])
def test_an_error_that_says_nothing_is_the_default_never_certainty(model, batch, error):
    labels, _ = some_labels(4)
    default = torch.full((4, 3), float(model.config.default_label_error))
    expected = model(**batch, labels=labels, label_errors=default).loss
    assert torch.equal(model(**batch, labels=labels, label_errors=torch.full((4, 3), error)).loss, expected)
    assert torch.equal(model(**batch, labels=labels).loss, expected)
    certain = model(**batch, labels=labels, label_errors=torch.full((4, 3), 1e-9)).loss
    assert not torch.equal(certain, expected)


def test_two_micro_batches_make_the_loss_of_the_whole(model):
    batch, (labels, errors) = random_batch(n_spectra=8), some_labels(8)
    labels[:4, 1:] = -100  # unevenly filled, or a mean of means would do as well
    n_labels = int((labels != -100).sum())
    whole = gradients(model, **batch, labels=labels, label_errors=errors)
    loss = model(**batch, labels=labels, label_errors=errors).loss
    model.zero_grad()
    parts = []
    for part in (slice(0, 4), slice(4, 8)):
        micro = {key: value[part] for key, value in batch.items()}
        told = {"labels": labels[part], "label_errors": errors[part], "num_items_in_batch": n_labels}
        parts.append(model(**micro, **told).loss)
        parts[-1].backward()
    torch.testing.assert_close(parts[0] + parts[1], loss)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, whole[name], atol=1e-6, rtol=1e-5)


class Rows(Dataset):
    def __init__(self, n_spectra):
        self.batch = random_batch(n_spectra=n_spectra)
        self.batch["labels"], self.batch["label_errors"] = some_labels(n_spectra)
        self.batch["labels"][::2, 1:] = -100

    def __len__(self):
        return len(self.batch["flux"])

    def __getitem__(self, row):
        return {key: value[row] for key, value in self.batch.items()}


def test_stock_trainer_accumulates_gradients_correctly(model, tmp_path):
    """8 rows x 4 accumulation steps = 32 rows x 1, although rows have one, two or three labels."""

    def step(per_device, accumulation):
        trained = copy.deepcopy(model)
        arguments = TrainingArguments(
            output_dir=str(tmp_path), per_device_train_batch_size=per_device, gradient_accumulation_steps=accumulation,
            max_steps=1, optim="sgd", learning_rate=1.0, lr_scheduler_type="constant", max_grad_norm=0.0, seed=3,
            report_to="none", save_strategy="no", use_cpu=True, disable_tqdm=True, logging_steps=1,
        )  # fmt: skip
        trainer = Trainer(model=trained, args=arguments, train_dataset=Rows(32))
        trainer.train()
        return trained.state_dict(), trainer.state.log_history[0]["loss"]

    before = copy.deepcopy(model.state_dict())
    (whole, loss), (accumulated, accumulated_loss) = step(32, 1), step(8, 4)
    assert max((whole[name] - before[name]).abs().max() for name in before) > 1e-2
    for name in whole:
        torch.testing.assert_close(accumulated[name], whole[name], atol=1e-5, rtol=1e-5)
    assert accumulated_loss == pytest.approx(loss, abs=1e-3)


# ---------------------------------------------------------------- wavelengths


def test_wavelength_encoding_sees_a_hundredth_of_an_angstrom_in_the_h_band():
    encoding = WavelengthEncoding(SpectraFMConfig(encoding_size=8, shortest_period=0.5, longest_period=500.0))
    wavelength = np.array([15_000.00, 15_000.01])
    period = np.array([0.5, 5.0, 50.0, 500.0])
    phase = 2 * np.pi * (wavelength[:, None] / period % 1)
    found = encoding(torch.from_numpy(wavelength)[None])[0].numpy()
    np.testing.assert_allclose(found, np.stack([np.sin(phase), np.cos(phase)], axis=-1).reshape(2, 8), atol=1e-6)
    assert found[1, 0] == pytest.approx(np.sin(2 * np.pi * 0.02), abs=1e-6)  # 0.01 Angstrom of a period of 0.5


@pytest.mark.parametrize("cast", ["bfloat16", "half", "float"])
def test_wavelength_encoding_survives_a_cast_of_the_model(model, cast):
    """bfloat16 steps by 64 Angstrom at 15,000."""
    wavelength = torch.tensor([[5000.5, 15_000.01]], dtype=torch.float64)
    expected = model.encoder.embeddings.encoding(wavelength)
    assert_same(getattr(model, cast)().encoder.embeddings.encoding(wavelength), expected, 1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_wavelength_encoding_is_restored_on_loading(model, tmp_path, dtype):
    """It is not in the file, and models are loaded on the meta device."""
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, dtype=dtype)
    wavelength = torch.tensor([[5000.5, 7399.5, 15_000.01]], dtype=torch.float64)
    assert torch.equal(loaded.encoder.embeddings.encoding(wavelength), model.encoder.embeddings.encoding(wavelength))


# ---------------------------------------------------------------- saved and loaded


def test_saved_model_is_the_same_model(model, batch, tmp_path):
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is SpectraFMForLabelPrediction
    assert type(loaded.encoder) is SpectraFMModel
    assert not loaded.training
    assert torch.equal(answer(loaded, batch), answer(model, batch))
    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()


def test_encoder_alone_loads_from_the_whole(model, batch, tmp_path):
    model.save_pretrained(tmp_path)
    encoder = SpectraFMModel.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(encoder(**batch).last_hidden_state, model.encoder(**batch).last_hidden_state)


def test_loading_warns_of_nothing(model, tmp_path):
    model.save_pretrained(tmp_path)
    _, report = SpectraFMForLabelPrediction.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report


# ---------------------------------------------------------------- what Hugging Face users switch on


def test_attentions_are_shares_of_the_tokens_that_are_there(model, batch):
    model.set_attn_implementation("eager")
    output = model(**batch, output_attentions=True)
    assert [a.shape for a in output.attentions] == [(4, 2, 6, 6)] * 2
    assert [a.shape for a in output.cross_attentions] == [(4, 2, N_LABELS, 6)]
    for weights in (*output.attentions, *output.cross_attentions):
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
        assert weights[0, ..., 1].abs().max() == 0  # the token of spectrum 0 that is missing
        assert weights[1, ..., 1].min() > 0
    labels_differ = output.cross_attentions[0][:, :, 0] - output.cross_attentions[0][:, :, 1]
    assert labels_differ.abs().max() > 1e-3


def test_attentions_change_no_answer(model, batch):
    model.set_attn_implementation("eager")
    assert torch.equal(answer(model, batch, output_attentions=True, output_hidden_states=True), answer(model, batch))


def test_hidden_states_run_from_tokens_to_the_encoded_spectrum(model, batch):
    output = model(**batch, output_hidden_states=True)
    encoded = model.encoder(**batch)
    assert len(output.hidden_states) == 3
    tokens, token_mask = model.encoder.embeddings(batch["flux"], batch["wavelength"], batch["attention_mask"].bool())
    assert torch.equal(output.hidden_states[0], tokens)
    assert torch.equal(output.hidden_states[-1], encoded.last_hidden_state)
    assert torch.equal(encoded.token_mask, token_mask)
    assert token_mask.sum() == 4 * 6 - 1
    assert model(**batch).hidden_states is None


def test_output_is_a_model_output_or_a_tuple(model, batch):
    output = model(**batch)
    assert isinstance(output, SpectraFMLabelOutput)
    mean, log_var, features = model(**batch, return_dict=False)
    assert torch.equal(mean, output.label_mean)
    assert torch.equal(log_var, output.label_log_var)
    assert features.shape == (4, N_LABELS, 32)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # transformers renames it
def test_gradient_checkpointing_gives_the_same_gradients(model, batch):
    labels, errors = some_labels(4)
    model.train()
    expected = gradients(model, **batch, labels=labels, label_errors=errors)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    runs = []
    for layer in (*model.encoder.layers, *model.decoder_layers):
        layer.mlp.register_forward_pre_hook(lambda *_: runs.append(1))
    found = gradients(model, **batch, labels=labels, label_errors=errors)
    assert len(runs) == 2 * 3  # once forward, once more backward, each of three layers
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-6, rtol=1e-5)


def test_bfloat16_autocast_is_close(model, batch):
    labels, errors = some_labels(4)
    exact = model(**batch, labels=labels, label_errors=errors)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(**batch, labels=labels, label_errors=errors)
    assert rough.label_mean.dtype == rough.loss.dtype == torch.float32
    assert 0 < (rough.label_mean - exact.label_mean).abs().max() < 0.1
    assert rough.loss.item() == pytest.approx(exact.loss.item(), abs=0.1)


def test_bfloat16_weights_are_close(model, batch, tmp_path):
    model.save_pretrained(tmp_path)
    rough = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert rough.encoder.embeddings.output_projection.weight.dtype == torch.bfloat16
    assert 0 < (answer(rough, batch).float() - answer(model, batch)).abs().max() < 0.1


def test_dropout_acts_in_training_only(batch):
    model = tiny_model(hidden_dropout=0.5, attention_dropout=0.5)
    assert torch.equal(answer(model, batch), answer(model, batch))
    model.train()
    assert not torch.equal(answer(model, batch), answer(model, batch))


def test_a_few_steps_of_training_learn(model, batch):
    labels, errors = some_labels(4)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(150):
        optimiser.zero_grad()
        losses.append(model(**batch, labels=labels, label_errors=errors).loss)
        losses[-1].backward()
        optimiser.step()
    measured = labels != -100
    with torch.no_grad():
        residual = (model(**batch).label_mean - labels)[measured]
    assert losses[-1] < losses[0] - 0.5
    assert residual.abs().max() < 0.3


# ---------------------------------------------------------------- configuration


def test_configuration_survives_the_journey_to_disk(tmp_path):
    config = tiny_config(label_names=["fe_h", "mg_fe"], shortest_period=12.5, hidden_dropout=0.1)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is SpectraFMConfig
    assert {**loaded.to_dict(), "_name_or_path": ""} == config.to_dict()
    assert loaded.label_names == ["fe_h", "mg_fe"]
    assert loaded.num_labels == 2


def test_default_labels_are_the_three_of_the_protocol():
    config = SpectraFMConfig()
    assert config.label_names == ["teff", "logg", "fe_h"]
    assert config.num_labels == 3
    assert config.problem_type == "regression"
    assert config.id2label == {0: "teff", 1: "logg", 2: "fe_h"}
    assert config.label2id == {"teff": 0, "logg": 1, "fe_h": 2}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"hidden_size": 33},
            r"hidden_size must be a multiple of every number of heads, got 33 and encoder_heads .2, 2.",
        ),
        ({"encoding_size": 15}, "encoding_size must be even .* got 15"),
        ({"patch_size": 0}, "patch_size must be positive, got 0"),
        ({"shortest_period": 50.0, "longest_period": 40.0}, "0 < shortest < longest, got 50.0 and 40.0 Angstrom"),
        ({"shortest_period": 0.0}, "0 < shortest < longest, got 0.0"),
        ({"label_names": ["fe_h", "fe_h"]}, "label_names must be at least one name, all different"),
        ({"label_names": []}, "label_names must be at least one name"),
        ({"encoder_heads": [0, 2]}, "encoder_heads must be positive, got .0, 2."),
        ({"default_label_error": 0.0}, "default_label_error"),
        ({"hidden_size": "large"}, "hidden_size"),
        (
            {"decoder_sizes": [64, 64]},
            "decoder_heads and decoder_sizes must have one entry per block, got .2. and .64, 64.",
        ),
        ({"encoder_sizes": [2.5, 1]}, "encoder_sizes"),
        ({"tokens": "word"}, "tokens"),
        ({"hidden_dropout": 1.5}, r"hidden_dropout must lie in .0, 1., got 1.5"),
        ({"tokens": "pixel"}, "patch_size must be 1 and encoding_size equal to hidden_size, got 16, 16 and 32"),
        ({"float32_phase": [1.0]}, "float32_phase must be .width in Angstrom, factor."),
        ({"given_names": ["teff", "teff"]}, "given_names must all be different"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(wrong, message):
    with pytest.raises(StrictDataclassError, match=message):
        tiny_config(**wrong)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"num_hidden_layers": 3}, "num_hidden_layers is said block by block here: give encoder_heads"),
        ({"num_labels": 5}, r"num_labels follows label_names .3., got 5"),
    ],
)
def test_words_of_other_models_are_explained(other, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**other)
