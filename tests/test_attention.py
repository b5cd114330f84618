"""Attention for a processor's cache gives what eager attention gives; dropout by places drops what it should."""

import pytest
import torch
from conftest import PATCH_SIZE, random_batch, tiny_model

from spectrafm_hf.attention_spectrafm import Dropout, dropped_places

PAPER_LIKE = {"norm_first": False, "learned_key_value": True, "shared_readout": True, "head_sizes": [48, 32]}


def varied(model, scale=0.1):
    """No parameter at 0 or 1, or a forgotten one would not show."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model


def answers_and_gradients(model, batch, implementation):
    model.set_attn_implementation(implementation)
    model.zero_grad()
    labels = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    output = model(**batch, labels=labels, label_errors=torch.full((4, 3), 0.3))
    output.loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return output.label_mean.detach(), output.label_log_var.detach(), gradients


@pytest.mark.parametrize("changes", [{}, PAPER_LIKE, PAPER_LIKE | {"encoder_heads": [16, 4]}], ids=str)
def test_answers_and_gradients_are_those_of_eager_attention(batch, changes):
    model = varied(tiny_model(**changes))
    *eager, expected = answers_and_gradients(model, batch, "eager")
    *ours, found = answers_and_gradients(model, batch, "cache_sized")
    for one, other in zip(ours, eager, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        # Without a learned key a shift of all keys changes nothing, so the gradient of k_proj.bias is rounding alone.
        torch.testing.assert_close(found[name], gradient, atol=2e-4 * expected["label_embeddings.weight"].norm().item(),
                                   rtol=1e-3, msg=name)  # fmt: skip


@pytest.mark.parametrize("changes", [{}, PAPER_LIKE], ids=["plain", "learned key"])
def test_huge_scores_stay_finite(batch, changes):
    """Weights are made without looking for their maximum first where a learned key stands by."""
    model = tiny_model(**changes)
    with torch.no_grad():
        for layer in model.encoder.layers:
            layer.attention.q_proj.weight.mul_(300)
            layer.attention.k_proj.weight.mul_(300)
    *answers, gradients = answers_and_gradients(model, batch, "cache_sized")
    assert all(values.isfinite().all() for values in (*answers, *gradients.values()))
    model.set_attn_implementation("eager")
    torch.testing.assert_close(answers[0], model(**batch).label_mean, atol=1e-4, rtol=1e-4)


def test_padding_and_missing_tokens_carry_nothing(batch):
    model = varied(tiny_model(**PAPER_LIKE)).eval()
    model.set_attn_implementation("cache_sized")
    padded = {key: torch.nn.functional.pad(value, (0, 2 * PATCH_SIZE)) for key, value in batch.items()}
    torch.testing.assert_close(model(**padded).label_mean, model(**batch).label_mean, atol=1e-5, rtol=1e-5)


def test_bfloat16_is_close(batch):
    model = tiny_model(**PAPER_LIKE).eval()
    model.set_attn_implementation("cache_sized")
    exact = model(**batch).label_mean
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(**batch).label_mean
    assert 0 < (rough - exact).abs().max() < 0.05


def test_dropped_weights_are_the_same_forward_and_backward():
    """The derivative of attention with dropout, by finite differences, the same places dropped each time."""
    model = varied(tiny_model(**PAPER_LIKE, attention_dropout=0.3), scale=0.1).train().double()
    model.set_attn_implementation("cache_sized")
    batch = random_batch()
    weight = model.encoder.layers[0].attention.v_proj.weight
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0), dtype=weight.dtype)

    def loss():
        torch.manual_seed(5)
        return model(**batch).label_mean.square().sum()

    loss().backward()
    slope, step = (weight.grad * direction).sum().item(), 1e-3
    with torch.no_grad():
        weight.add_(step * direction)
        above = loss().item()
        weight.sub_(2 * step * direction)
        below = loss().item()
    assert (above - below) / (2 * step) == pytest.approx(slope, rel=2e-3)


def test_attention_dropout_acts_in_training_only(batch):
    model = tiny_model(**PAPER_LIKE, attention_dropout=0.5)
    model.set_attn_implementation("cache_sized")
    assert torch.equal(model(**batch).label_mean, model(**batch).label_mean)
    model.train()
    assert not torch.equal(model(**batch).label_mean, model(**batch).label_mean)


@pytest.mark.parametrize("p", [0.05, 0.5])
def test_a_share_p_is_dropped_and_the_rest_scaled_up(p):
    torch.manual_seed(0)
    dropped = Dropout(p)(torch.ones(1000, 300))
    assert (dropped == 0).float().mean().item() == pytest.approx(p, abs=0.003)
    torch.testing.assert_close(dropped[dropped != 0], torch.full_like(dropped[dropped != 0], 1 / (1 - p)))
    rows = (dropped == 0).float().mean(dim=1)
    assert rows.std().item() == pytest.approx((p * (1 - p) / 300) ** 0.5, rel=0.1)  # as independent draws would have


@pytest.mark.parametrize("n", [1, 2, 10, 100])
def test_few_numbers_are_dropped_as_often_as_many(n):
    torch.manual_seed(0)
    drop = Dropout(0.2)
    found = sum((drop(torch.ones(n)) == 0).sum().item() for _ in range(4000 // n + 400))
    assert found / (n * (4000 // n + 400)) == pytest.approx(0.2, abs=0.03)


def test_attention_weights_cannot_be_had_from_it(batch):
    model = tiny_model()
    model.set_attn_implementation("cache_sized")
    with pytest.raises(ValueError, match="set_attn_implementation"):
        model(**batch, output_attentions=True)


def test_dropout_is_off_in_evaluation_and_at_zero():
    values = torch.randn(50)
    assert Dropout(0.5).eval()(values) is values
    torch.testing.assert_close(Dropout(0.0).train()(values), values)


def test_places_are_drawn_anew_each_time():
    torch.manual_seed(0)
    assert not torch.equal(*(dropped_places(1000, 0.1, torch.device("cpu")) for _ in range(2)))
