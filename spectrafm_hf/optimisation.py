"""Muon for the matrices inside a network, AdamW for the rest, as one optimiser that a `Trainer` can drive.

Muon (Jordan et al. 2024; torch.optim.Muon) replaces the momentum of a weight matrix by the nearest orthogonal one, so
that every direction moves alike. Pre-training on synthetic spectra then needs about a tenth of the spectra it needs
with AdamW (training/LOG.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer


def hidden_matrices(model: nn.Module) -> list[Tensor]:
    """Trainable weights that map hidden numbers to hidden numbers: of all linear layers but the readouts of labels."""
    return [
        module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.weight.requires_grad and "wavelength_projection" not in name
    ]


class MuonAndAdamW(Optimizer):
    """Two optimisers that step together.

    Muon's updates are scaled to the size of AdamW's (Liu et al. 2025, arXiv 2502.16982), so one learning rate serves
    both. Weight decay acts on the matrices alone.

    Args:
        model: Its trainable parameters are optimised.
        learning_rate: Of both.
        weight_decay: Of the matrices.
        betas, eps: Of AdamW.
        momentum: Of Muon.

    Raises:
        ValueError: No linear layer can be trained.
    """

    def __init__(
        self,
        model: nn.Module,
        learning_rate: float,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-8,
        momentum: float = 0.95,
    ):
        matrices = hidden_matrices(model)
        known = {id(parameter) for parameter in matrices}
        rest = [p for p in model.parameters() if p.requires_grad and id(p) not in known]
        if not matrices:
            raise ValueError("muon needs a linear layer that is trained, got none; use the optimizer adamw.")
        self.parts: list[Optimizer] = [
            Muon(
                matrices, lr=learning_rate, weight_decay=weight_decay, momentum=momentum,
                adjust_lr_fn="match_rms_adamw",
            )
        ]  # fmt: skip
        if rest:
            self.parts.append(AdamW(rest, lr=learning_rate, betas=betas, eps=eps, weight_decay=0.0))
        super().__init__([*matrices, *rest], {"lr": learning_rate})
        self._share()

    def _share(self) -> None:
        """The groups a scheduler turns are those of the two."""
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None if closure is None else closure()
        for part in self.parts:
            part.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share()
