"""A pre-trained network where it must extrapolate, a linear method where it need not.

Among stars like the labelled ones, ridge regression on their pixels is hard to beat; far from them nothing fitted to
them can be believed. So the answer is the network's, and moves towards the linear one where the network itself sees a
star among the labelled ones. How far is chosen inside the labelled stars.
"""

from __future__ import annotations

import numpy as np
from scipy.special import expit

SHARES = np.linspace(0.0, 1.0, 11)
EDGE_QUANTILE, EDGE_WIDTH = 0.05, 0.15
"""The range of the labelled stars ends at this quantile of their label; over as many dex the linear method fades."""


def nearness(network: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """1 for stars inside the range of the labelled ones, 0 far below it; shape (n,).

    Args:
        network: The network's answer for the stars in question, dex, shape (n,).
        labels: Of the labelled stars, dex.
    """
    near: np.ndarray = expit((network - np.quantile(labels, EDGE_QUANTILE)) / EDGE_WIDTH)
    return near


def choose_share(network: np.ndarray, linear: np.ndarray, labels: np.ndarray) -> float:
    """How much of the linear answer is best for the labelled stars, left out one by one.

    Of all shares as good as the best to within one standard error, the smallest: what the few stars cannot tell apart
    is decided for the network.

    Args:
        network, linear: Left-out answers for the labelled stars, shape (n,).
        labels: Theirs, shape (n,).
    """
    near = nearness(network, labels)
    squared = np.array([(combine(network, linear, near, share) - labels) ** 2 for share in SHARES])
    mean = squared.mean(axis=1)
    best = int(np.argmin(mean))
    error = (squared - squared[best]).std(axis=1) / np.sqrt(labels.size)  # of the difference: the stars are the same
    return float(SHARES[np.flatnonzero(mean <= mean[best] + error)[0]])


def combine(network: np.ndarray, linear: np.ndarray, near: np.ndarray, share: float) -> np.ndarray:
    """The answer, shape (n,)."""
    return network + share * near * (linear - network)
