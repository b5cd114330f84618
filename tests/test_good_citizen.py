"""What users of torch, transformers, accelerate and PEFT take for granted; for our tokens and the published ones."""

import copy
import os
import subprocess
import sys

import accelerate
import numpy as np
import pytest
import torch
from conftest import LABEL_CENTER, on_ranks, random_batch, tiny_extractor, tiny_model
from safetensors.torch import load_file, save_file
from test_import_direction import REMOTE_CODE
from test_model_properties import PAPER_LIKE
from test_modeling import answer, gradients, some_labels
from torch.utils.data import Dataset
from transformers import AutoModel, Trainer, TrainingArguments

from spectrafm_hf import SpectraFMConfig, SpectraFMForLabelPrediction
from spectrafm_hf.hub import save_portable
from spectrafm_hf.spectra import apogee_wavelength
from spectrafm_hf.stages import leave_process_group

KINDS = pytest.mark.parametrize("kind", [{}, PAPER_LIKE], ids=["patch tokens", "pixel tokens"])
GIVEN = ["bp_rp", "logg"]


def told_batch(n_spectra=4, n_tokens=6, given=True, seed=0):
    """All that a model can be told; the number of pixels is n_tokens * PATCH_SIZE, whatever the tokens are."""
    generator = torch.Generator().manual_seed(seed)
    batch = random_batch(n_spectra, n_tokens, seed)
    batch["flux_error"] = 0.01 + 0.1 * torch.rand(batch["flux"].shape, generator=generator)
    batch["resolving_power"] = torch.full_like(batch["flux"], 2000.0)
    if given:
        batch["given"] = torch.tensor([[0.4, torch.nan], [torch.nan, torch.nan]] * n_spectra)[:n_spectra]
        batch["given_errors"] = torch.full((n_spectra, 2), 0.1)
    return batch


def assert_same(one, other, tolerance=1e-5):
    torch.testing.assert_close(one, other, rtol=0, atol=tolerance, equal_nan=True)


# ---------------------------------------------------------------- what is inside


def test_attention_to_the_learned_key_comes_last():
    model, batch = tiny_model(given_names=GIVEN, **PAPER_LIKE), told_batch(n_tokens=2)
    model.set_attn_implementation("eager")
    output = model(**batch, output_attentions=True)
    assert [a.shape for a in output.attentions] == [(4, 2, 32 + 2, 32 + 2 + 1)] * 2
    assert [a.shape for a in output.cross_attentions] == [(4, 2, 3, 32 + 2 + 1)]
    there = torch.cat([batch["attention_mask"], batch["given"].isfinite(), torch.ones(4, 1)], dim=1).bool()
    for weights in (*output.attentions, *output.cross_attentions):
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
        for row in range(4):
            assert weights[row][..., there[row]].min() > 0
            assert not weights[row][..., ~there[row]].any()


def test_keys_that_are_alike_share_the_attention_equally():
    """1 / (good pixels + 1) each; the learned one, given another key than the pixels have, comes first."""
    model, batch = tiny_model(**PAPER_LIKE), random_batch(n_tokens=2)
    model.set_attn_implementation("eager")
    good = batch["attention_mask"]
    for learned_key in (0.0, 0.5):
        with torch.no_grad():
            for block in (*model.encoder.layers, *model.decoder_layers):
                block.attention.k_proj.weight.zero_()
                block.attention.k_proj.bias.zero_()
                block.attention.learned_key.fill_(learned_key)
        output = model(**batch, output_attentions=True)
        for weights in (*output.attentions, *output.cross_attentions):
            pixels, learned = weights[..., :-1], weights[..., -1:]
            equal = (good / good.sum(1, keepdim=True))[:, None, None]
            torch.testing.assert_close(pixels, (1 - learned) * equal)
            alike = (learned - 1 / (1 + good.sum(1))[:, None, None, None]).abs().max()
            assert alike < 1e-6 if learned_key == 0 else alike > 1e-3


@KINDS
def test_looking_inside_changes_no_answer(kind):
    model, batch = tiny_model(given_names=GIVEN, **kind), told_batch(n_tokens=2)
    model.set_attn_implementation("eager")
    output = model(**batch, output_attentions=True, output_hidden_states=True)
    plain = model(**batch)
    assert plain.attentions is plain.hidden_states is plain.cross_attentions is None
    assert torch.equal(output.label_mean, plain.label_mean)
    n_tokens = 2 if kind == {} else 32
    assert [states.shape for states in output.hidden_states] == [(4, n_tokens + len(GIVEN), 32)] * 3
    assert torch.equal(output.hidden_states[-1], model.encoder(**batch).last_hidden_state)


# ---------------------------------------------------------------- less memory


@KINDS
def test_activation_checkpointing_gives_the_same_gradients(kind):
    """Dropout too is repeated as it was."""
    model = tiny_model(given_names=GIVEN, hidden_dropout=0.1, attention_dropout=0.1, **kind).train()
    batch, (labels, errors) = told_batch(n_tokens=2), some_labels(4)

    def dropped_out():
        torch.manual_seed(7)
        return gradients(model, **batch, labels=labels, label_errors=errors)

    expected = dropped_out()
    model.activation_checkpointing_enable()
    runs = []
    for layer in (*model.encoder.layers, *model.decoder_layers):
        layer.mlp.register_forward_pre_hook(lambda *_: runs.append(1))
    found = dropped_out()
    assert len(runs) == 2 * 3  # once forward, once more backward, each of three layers
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-6, rtol=1e-5)
    model.activation_checkpointing_disable()
    runs.clear()
    dropped_out()
    assert len(runs) == 3


# ---------------------------------------------------------------- compiled and exported


@pytest.fixture
def forget_compiled():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.usefixtures("forget_compiled")
@pytest.mark.parametrize(
    ("kind", "given", "backend"),
    [
        ({}, True, "inductor"),
        (PAPER_LIKE, True, "inductor"),
        ({}, False, "aot_eager"),
        (PAPER_LIKE, False, "aot_eager"),
    ],
    ids=["patch tokens, given", "pixel tokens, given", "patch tokens", "pixel tokens"],
)
def test_compiled_model_is_one_graph_and_the_same_model(kind, given, backend):
    """The backend makes code of the graph, which takes its time; the same graph without inputs goes without it."""
    model = tiny_model(given_names=GIVEN if given else [], encoder_heads=[2], encoder_sizes=[64], **kind)
    batch = told_batch(given=given)
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend=backend)
    assert_same(answer(compiled, batch), answer(model, batch))


@pytest.mark.slow
@KINDS
@pytest.mark.parametrize("given", [False, True], ids=["", "given"])
def test_exported_model_takes_any_number_of_spectra_and_pixels(kind, given):
    model = tiny_model(given_names=GIVEN if given else [], **kind)
    batch = told_batch(given=given)
    patch_size, n_pixels = model.config.patch_size, batch["flux"].shape[1]
    n_spectra, n_tokens = torch.export.Dim("n_spectra", min=1), torch.export.Dim("n_tokens", min=2)
    pixels = n_tokens if patch_size == 1 else patch_size * n_tokens
    shapes = {
        name: {0: n_spectra, 1: pixels} if values.shape[1] == n_pixels else {0: n_spectra}
        for name, values in batch.items()
    }
    exported = torch.export.export(model, (), batch, dynamic_shapes=shapes).module()
    for other in (batch, told_batch(3, 9, given, seed=1), told_batch(1, 2, given, seed=2), told_batch(7, 30, given)):
        assert_same(answer(exported, other), answer(model, other))


# ---------------------------------------------------------------- rough numbers


def rough_answers(model, batch):
    """In bfloat16: by autocast, and with the weights themselves."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast = answer(model, batch)
    rough = copy.deepcopy(model).to(torch.bfloat16)
    assert {parameter.dtype for parameter in rough.parameters()} == {torch.bfloat16}
    return autocast, answer(rough, batch).float()


@KINDS
def test_bfloat16_is_good_to_a_twentieth_of_a_standard_deviation(kind):
    """Of the labels, whose scaled values have unit spread; the readouts are set so that the answers have no more."""
    model, batch = tiny_model(given_names=GIVEN, **kind), told_batch(given=False)
    with torch.no_grad():
        for weight in (model.head.mean_weight, model.head.log_var_weight):
            weight /= max(1.0, answer(model, batch).std(dim=0).max())
    exact = answer(model, batch)
    for rough in rough_answers(model, batch):
        assert 0 < (rough - exact).abs().max() < 0.05


@torch.no_grad()
def randomised(model, seed=0):
    """Every weight away from 0, all states and answers of order 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "layernorm" in name and name.endswith("weight"):
            parameter.copy_(0.5 + torch.rand(parameter.shape, generator=generator))
            continue
        spread = 0.2 if parameter.ndim == 1 else ((2.0 if "head" in name else 1.0) / parameter.shape[1]) ** 0.5
        spread = 1.0 if "embedding" in name or "learned" in name else spread
        parameter.copy_(spread * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def paper_batch(n_spectra=4, n_pixels=512):
    generator = torch.Generator().manual_seed(0)
    grid = torch.from_numpy(apogee_wavelength())
    pixels = torch.stack([torch.randperm(len(grid), generator=generator)[:n_pixels] for _ in range(n_spectra)])
    contrast = torch.linspace(0.2, 2.0, n_spectra)[:, None]
    return {"flux": contrast * torch.randn(pixels.shape, generator=generator), "wavelength": grid[pixels]}


def test_bfloat16_does_for_the_published_size():
    """512 tokens of the H band, whose wavelengths bfloat16 would know to 64 Angstrom."""
    model, batch = randomised(SpectraFMForLabelPrediction(SpectraFMConfig.paper())), paper_batch()
    exact = answer(model, batch)
    assert exact.std(dim=0).min() > 0.02
    for rough in rough_answers(model, batch):
        assert 0 < (rough - exact).abs().max() < 0.05


# ---------------------------------------------------------------- adapters


@KINDS
@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers by an old name
def test_lora_learns_is_saved_and_merged(kind, tmp_path):
    peft = pytest.importorskip("peft")
    base, batch, (labels, errors) = tiny_model(given_names=GIVEN, **kind), told_batch(), some_labels(4)
    untouched = answer(base, batch)
    labels = torch.where(untouched[:, :3].isnan(), -100.0, labels)
    lora = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], modules_to_save=["head"])
    adapted = peft.get_peft_model(copy.deepcopy(base), lora)
    assert_same(answer(adapted, batch), untouched)  # B starts at 0
    optimiser = torch.optim.Adam([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(5):
        optimiser.zero_grad()
        losses.append(adapted(**batch, labels=labels, label_errors=errors).loss)
        losses[-1].backward()
        optimiser.step()
    assert losses[-1] < losses[0]
    learned = answer(adapted, batch)
    assert (learned - untouched).abs().nan_to_num(0).max() > 1e-2
    with adapted.disable_adapter():
        assert_same(answer(adapted, batch), untouched)

    adapted.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").stat().st_size < 100_000
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    assert_same(answer(loaded, batch), learned)

    merged = loaded.merge_and_unload()
    assert type(merged) is SpectraFMForLabelPrediction
    assert merged.state_dict().keys() == base.state_dict().keys()
    assert_same(answer(merged, batch), learned)
    merged.save_pretrained(tmp_path / "merged")
    assert_same(answer(AutoModel.from_pretrained(tmp_path / "merged"), batch), learned)


# ---------------------------------------------------------------- where the weights lie


@pytest.fixture(params=[{}, PAPER_LIKE], ids=["patch tokens", "pixel tokens"])
def saved(request, tmp_path):
    """A model's answers and the folder it was saved to."""
    model = tiny_model(given_names=GIVEN, **request.param)
    model.save_pretrained(tmp_path / "model")
    return answer(model, told_batch()), tmp_path / "model"


@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}])
def test_device_maps_change_no_answer(saved, device_map):
    expected, folder = saved
    assert_same(answer(AutoModel.from_pretrained(folder, device_map=device_map), told_batch()), expected, 0)


def test_blocks_may_stay_on_disk(saved, tmp_path):
    """More model than memory: the map is made from what must not be split."""
    expected, folder = saved
    model = AutoModel.from_pretrained(folder)
    whole = model.get_memory_footprint()
    device_map = accelerate.infer_auto_device_map(
        model, {"cpu": whole // 2, "disk": 10 * whole}, no_split_module_classes=model._no_split_modules
    )
    assert set(device_map.values()) == {"cpu", "disk"}
    loaded = AutoModel.from_pretrained(folder, device_map=device_map, offload_folder=tmp_path / "offloaded")
    assert {parameter.device.type for parameter in loaded.parameters()} == {"cpu", "meta"}
    assert_same(answer(loaded, told_batch()), expected, 0)


@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_offloaded_weights_come_back_for_each_step(saved, tmp_path, where):
    expected, folder = saved
    model = AutoModel.from_pretrained(folder)
    if where == "cpu":
        accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    else:
        accelerate.disk_offload(model, offload_dir=tmp_path / "offloaded", execution_device=torch.device("cpu"))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert_same(answer(model, told_batch()), expected, 0)


# ---------------------------------------------------------------- saved, loaded, without us


def test_the_published_size_is_saved_to_the_last_bit(tmp_path):
    """And loaded, it answers the same twice, although it was made with a dropout of 0.05."""
    torch.manual_seed(0)
    SpectraFMForLabelPrediction(SpectraFMConfig.paper(given_names=["bp_rp"])).save_pretrained(tmp_path / "one")
    model = AutoModel.from_pretrained(tmp_path / "one")
    assert not model.training
    assert model.config.hidden_dropout == model.config.attention_dropout == 0.05
    assert torch.equal(answer(model, paper_batch(n_pixels=32)), answer(model, paper_batch(n_pixels=32)))
    model.save_pretrained(tmp_path / "two")
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "two").iterdir()) == ["config.json", "model.safetensors"]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


WITHOUT_US = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "spectrafm_hf":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
folder, told, answered = sys.argv[1:]

import numpy as np
import torch
from transformers import AutoFeatureExtractor, AutoModel

model = AutoModel.from_pretrained(folder, trust_remote_code=True)
extractor = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=True)
spectra = np.load(told)
features = extractor(
    spectra["flux"], spectra["wavelength"], spectra["bad_pixel"], return_tensors="pt",
    flux_error=spectra["flux_error"], resolving_power=2000.0, given={"bp_rp": 0.82},
)
with torch.no_grad():
    output = model(**features)
assert not any(name.split(".")[0] == "spectrafm_hf" for name in sys.modules)
teff = extractor.decode_labels(output.label_mean, output.label_log_var)["teff"]
np.savez(answered, mean=output.label_mean, log_var=output.label_log_var, teff=teff["value"], **features)
print(type(model).__module__, type(extractor).__module__)
"""


def test_a_checkpoint_answers_the_same_where_we_are_not_installed(star, tmp_path):
    """Its code travels with it."""
    model, extractor = tiny_model(given_names=["bp_rp"]), tiny_extractor(given_names=["bp_rp"])
    folder = tmp_path / "hub"
    save_portable(model, extractor, folder)
    assert {path.stem for path in folder.glob("*.py")} == set(REMOTE_CODE)

    wavelength, flux = star
    told = {"bad_pixel": np.arange(flux.size) % 50 == 3, "flux_error": 0.02 * flux}
    np.savez(tmp_path / "told.npz", flux=flux, wavelength=wavelength, **told)
    ran = subprocess.run(
        [sys.executable, "-I", "-c", WITHOUT_US, folder, tmp_path / "told.npz", tmp_path / "answered.npz"],
        env=os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    assert [name.split(".")[0] for name in ran.stdout.split()] == ["transformers_modules"] * 2

    features = extractor(flux, wavelength, return_tensors="pt", resolving_power=2000.0, given={"bp_rp": 0.82}, **told)
    with torch.no_grad():
        output = model(**features)
    answered = np.load(tmp_path / "answered.npz")
    for name, values in features.items():
        np.testing.assert_array_equal(answered[name], values.numpy(), err_msg=name)
    # To the last bit in two fresh processes; here the tests before may have left other threads and memory behind.
    np.testing.assert_allclose(answered["mean"], output.label_mean.numpy(), rtol=0, atol=1e-6)
    np.testing.assert_allclose(answered["log_var"], output.label_log_var.numpy(), rtol=0, atol=1e-6)
    assert answered["teff"][0] == pytest.approx(LABEL_CENTER[0] + 850.0 * output.label_mean[0, 0].item())


# ---------------------------------------------------------------- the loss of a stock Trainer


class Rows(Dataset):
    """32 spectra; a fifth of the labels is missing, and every other star is told its colour."""

    def __init__(self):
        rng = np.random.default_rng(5)
        self.batch = random_batch(n_spectra=32, n_tokens=2)
        labels = rng.normal(size=(32, 3))
        labels[rng.permutation(32)[:13], rng.integers(0, 2, 13)] = -100  # 13 of 96, and 6 more
        labels[rng.permutation(32)[:6], 2] = -100
        self.batch["labels"] = torch.from_numpy(labels).float()
        self.batch["label_errors"] = torch.from_numpy(rng.uniform(0.02, 0.3, labels.shape)).float()
        self.batch["given"] = torch.where(torch.arange(32)[:, None] % 2 == 0, 0.4, torch.nan).expand(-1, 1).clone()

    def __len__(self):
        return 32

    def __getitem__(self, row):
        return {key: value[row] for key, value in self.batch.items()}


def one_step(kind, folder, per_device, accumulation=1, **changes):
    """Weights after one step of plain gradient descent on all 32 rows, and its loss."""
    model = tiny_model(given_names=["bp_rp"], **kind)
    arguments = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=per_device, gradient_accumulation_steps=accumulation,
        max_steps=1, optim="sgd", learning_rate=0.1, lr_scheduler_type="constant", max_grad_norm=0.0, seed=3,
        report_to="none", save_strategy="no", use_cpu=True, disable_tqdm=True, logging_steps=1,
        ddp_find_unused_parameters=False, **changes,
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=Rows())
    trainer.train()
    return model.state_dict() | {"loss": torch.tensor(trainer.state.log_history[0]["loss"])}


def assert_same_step(found, expected):
    """To 1e-5 of each weight; biases of keys, which no softmax sees, stay at 0."""
    assert found.keys() == expected.keys()
    for name in expected:
        difference = (found[name] - expected[name]).norm()
        assert difference < 1e-5 * expected[name].norm() + 1e-7, f"{name}: {difference:.1e}"


def train_on_two_processes(folder):
    """On each of the two."""
    for number, kind in enumerate(({}, PAPER_LIKE)):
        for accumulation in (1, 4):
            weights = one_step(kind, folder, 16 // accumulation, accumulation)
            if os.environ["RANK"] == "0":
                save_file(weights, folder / f"{number}_{accumulation}.safetensors")
    leave_process_group()


@pytest.mark.slow
def test_loss_is_the_mean_over_all_labels_however_many_processes_and_micro_batches_share_it(tmp_path, fresh_processes):
    """32 rows at once = 4 x 8 = 2 processes x 16 = 2 x 4 x 4, although a row has one, two or three labels."""
    labels = Rows().batch["labels"]
    assert (labels == -100).float().mean().item() == pytest.approx(0.2, abs=0.005)
    per_process = (labels != -100).view(2, 16, 3).sum((1, 2))
    assert per_process[0] != per_process[1]  # else a mean of means would do

    on_ranks(fresh_processes, train_on_two_processes, tmp_path)
    for number, kind in enumerate(({}, PAPER_LIKE)):
        expected = one_step(kind, tmp_path, 32)
        before = tiny_model(given_names=["bp_rp"], **kind).state_dict()
        assert all((expected[name] - before[name]).any() for name in before if "k_proj.bias" not in name)
        assert_same_step(one_step(kind, tmp_path, 8, 4), expected)
        for accumulation in (1, 4):
            assert_same_step(load_file(tmp_path / f"{number}_{accumulation}.safetensors"), expected)


def test_a_trainer_may_checkpoint_activations(tmp_path):
    assert_same_step(one_step({}, tmp_path, 32, activation_checkpointing=True), one_step({}, tmp_path, 32))


@pytest.mark.parametrize("shape", [(4, 1), (1, 3), (3,), (3, 3)])
def test_errors_of_labels_must_have_the_shape_of_the_labels(model, batch, shape):
    """Broadcast without a word, the error of one label would be that of all."""
    with pytest.raises(ValueError, match="label_errors must have shape"):
        model(**batch, labels=torch.zeros(4, 3), label_errors=torch.full(shape, 0.1))
