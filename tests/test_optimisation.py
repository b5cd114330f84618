"""Muon for the matrices, AdamW for the rest: which is which, and that a Trainer can drive both as one."""

import numpy as np
import pytest
import torch
from conftest import random_batch, tiny_model
from torch import nn

from spectrafm_hf.optimisation import MuonAndAdamW, hidden_matrices


def step(model, optimizer, n=3):
    """A few steps on fixed spectra."""
    batch = random_batch()
    labels = torch.linspace(-1, 1, 12).reshape(4, 3)
    losses = []
    for _ in range(n):
        optimizer.zero_grad()
        loss = model(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_every_parameter_belongs_to_exactly_one_of_the_two():
    model = tiny_model()
    optimizer = MuonAndAdamW(model, 1e-3)
    parts = [{id(p) for group in part.param_groups for p in group["params"]} for part in optimizer.parts]
    assert parts[0] == {id(p) for p in hidden_matrices(model)}
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == {id(p) for p in model.parameters()}
    readouts = {id(model.head.mean_weight), id(model.head.log_var_weight), id(model.label_embeddings.weight)}
    assert readouts <= parts[1]


def test_a_matrix_moves_in_all_its_directions_alike():
    """The update of a matrix has singular values that are all about the same: that is what Muon is."""
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(24, 24))
    before = layer[0].weight.detach().clone()
    optimizer = MuonAndAdamW(layer, 0.01)
    # A gradient that is mostly of one rank: plain descent would move along it alone.
    layer[0].weight.grad = torch.outer(torch.ones(24), torch.ones(24)) + 0.3 * torch.randn(24, 24)
    pushed = torch.linalg.svdvals(layer[0].weight.grad)
    assert pushed[12] < 0.1 * pushed[0]
    layer[0].bias.grad = torch.zeros(24)
    optimizer.step()
    moved = torch.linalg.svdvals(layer[0].weight.detach() - before)
    assert moved[12] > 0.6 * moved[0]


def test_it_learns():
    losses = step(model := tiny_model(), MuonAndAdamW(model, 3e-3), n=40)
    assert losses[-1] < losses[0] - 0.5


def test_a_scheduler_turns_both():
    model = tiny_model()
    optimizer = MuonAndAdamW(model, 1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    step(model, optimizer, 1)
    schedule.step()
    assert [group["lr"] for part in optimizer.parts for group in part.param_groups] == [5e-4, 5e-4]


def test_a_saved_state_goes_on_as_if_nothing_had_happened(tmp_path):
    straight, halted = tiny_model(), tiny_model()
    step(straight, MuonAndAdamW(straight, 3e-3), 6)
    first = MuonAndAdamW(halted, 3e-3)
    step(halted, first, 3)
    torch.save(first.state_dict(), tmp_path / "optimizer.pt")
    second = MuonAndAdamW(halted, 1.0)
    second.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    assert {group["lr"] for group in second.param_groups} == {3e-3}
    step(halted, second, 3)
    for one, other in zip(straight.parameters(), halted.parameters(), strict=True):
        np.testing.assert_array_equal(one.detach().numpy(), other.detach().numpy())


def test_without_a_matrix_it_refuses():
    model = tiny_model()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.head.mean_bias.requires_grad_(True)
    with pytest.raises(ValueError, match="needs a linear layer that is trained"):
        MuonAndAdamW(model, 1e-3)
