"""A pre-trained network where it must extrapolate, a linear method where it need not.

Among stars like the labelled ones, ridge regression is hard to beat; far from them nothing fitted to them can be
believed. So the answer is the network's, and moves towards the linear one where the network itself sees a star among
the labelled ones. How far is chosen inside the labelled stars. The linear method is the mean of two ridge regressions,
on the pixels and on what the network's readout sees: their errors differ.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import expit
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.model_selection import KFold, cross_val_predict

SHARES = np.linspace(0.0, 1.0, 11)
EDGE_QUANTILE, EDGE_WIDTH = 0.05, 0.15
"""The range of the labelled stars ends at this quantile of their label; over as many dex the linear method fades."""

FEWEST_STARS = 20
"""Fewer do not tell what the linear method is worth, and the network answers alone."""

ALPHAS = np.geomspace(1e-3, 1e5, 25)
"""Candidate penalties of a ridge regression, in units of the variance of all its inputs."""


def nearness(network: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """1 for stars inside the range of the labelled ones, 0 far below it; shape (n,).

    Args:
        network: The network's answer for the stars in question, dex, shape (n,).
        labels: Of the labelled stars, dex.
    """
    near: np.ndarray = expit((network - np.quantile(labels, EDGE_QUANTILE)) / EDGE_WIDTH)
    return near


def linear_answers(
    inputs: Sequence[tuple[np.ndarray, np.ndarray]], labels: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mean of ridge regressions, one per kind of input, each with a penalty chosen by leave-one-out.

    Args:
        inputs: Of the labelled stars and of those in question, shapes (n, d) and (n_test, d).
        labels: Of the labelled stars, (n,).
        seed: Of the ten folds in which each labelled star is left out once.

    Returns:
        Answers for the stars in question, (n_test,); left-out answers for the labelled ones, (n,).
    """
    answers, left_out = [], []
    folds = KFold(min(10, labels.size), shuffle=True, random_state=seed)
    for labelled, asked in inputs:
        alphas = ALPHAS * max(float(labelled.var(axis=0).sum()), 1e-12)
        ridge = Ridge(RidgeCV(alphas, scoring="neg_mean_squared_error").fit(labelled, labels).alpha_)
        left_out.append(cross_val_predict(ridge, labelled, labels, cv=folds))
        answers.append(ridge.fit(labelled, labels).predict(asked))
    return np.mean(answers, axis=0), np.mean(left_out, axis=0)


def choose_share(network: np.ndarray, linear: np.ndarray, labels: np.ndarray) -> float:
    """How much of the linear answer is best for the labelled stars, each left out once; 0 of fewer than 20 stars.

    Args:
        network, linear: Left-out answers for the labelled stars, shape (n,).
        labels: Theirs, shape (n,).
    """
    if labels.size < FEWEST_STARS:
        return 0.0
    near = nearness(network, labels)
    squared = [np.mean((combine(network, linear, near, share) - labels) ** 2) for share in SHARES]
    return float(SHARES[int(np.argmin(squared))])


def combine(network: np.ndarray, linear: np.ndarray, near: np.ndarray, share: float) -> np.ndarray:
    """The answer, shape (n,)."""
    return network + share * near * (linear - network)
