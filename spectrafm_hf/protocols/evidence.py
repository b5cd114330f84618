"""What can be said of the model itself: honest intervals, the right lines, a sense of its limits.

On synthetic stars that no training and no calibration saw; what abstaining is worth, on real ones.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..applicability import FILE_NAME, Applicability
from ..builders.libraries import load_library
from ..explain import explain
from ..feature_extraction_spectrafm import SpectraFMFeatureExtractor
from ..hub import fetch, load_pretrained
from ..labels import get_label
from ..metrics import risk_coverage
from ..modeling_spectrafm import SpectraFMForLabelPrediction
from ..plots import plot_risk_coverage
from ..prediction import Predicted, ask, rows_of
from ..pretraining import STREAMED
from ..synthesis.surveys import SURVEYS, SurveyConditions
from ..trust import judge_trust, read_recipe_of
from ..wrong_inputs import FAMILIES, ood_auroc

EVIDENCE = ("calibration", "lines", "ood")
N_JUDGED, N_EXPLAINED, N_STRANGE = 5000, 32, 300
"""Stars of each survey for coverage; giants, and as many dwarfs, for the lines; spectra of each wrong kind."""


@dataclass(frozen=True)
class Evidence:
    """Of one model.

    Args:
        start: Its folder or Hub repository.
        output: Folder of the benchmark; figures go to figures/ there.
        budget: Factor on the number of stars; below 1 for a trial.
    """

    start: str
    output: Path
    budget: float = 1.0

    @cached_property
    def folder(self) -> Path:
        return fetch(self.start)

    @cached_property
    def network(self) -> tuple[SpectraFMForLabelPrediction, SpectraFMFeatureExtractor]:
        return load_pretrained(self.folder)

    @cached_property
    def origin(self) -> str:
        """SHA-256 of all that an answer hangs on."""
        found = hashlib.sha256(json.dumps([self.budget, N_JUDGED, N_EXPLAINED, N_STRANGE]).encode())
        for path in sorted(self.folder.iterdir()):
            if path.suffix == ".safetensors" or path.name == "preprocessor_config.json":
                found.update(path.read_bytes())
        return found.hexdigest()

    def find(self, name: str, kept: Mapping[str, Any] | None) -> dict[str, Any]:
        """One part of the evidence, or what is kept of it if the model is the same.

        Args:
            name: One of `EVIDENCE`.
            kept: What an earlier run found.
        """
        if kept is not None and kept.get("of") == self.origin:
            return dict(kept)
        ways: Mapping[str, Callable[[], dict[str, Any]]] = {
            "calibration": self.calibration,
            "lines": self.lines,
            "ood": self.ood,
        }
        try:
            return ways[name]() | {"of": self.origin}
        except ValueError as error:  # e.g. a model that has seen one survey only
            return {"left_out": str(error)}

    def _some(self, n: int, fewest: int) -> int:
        return max(round(self.budget * n), fewest)

    def calibration(self) -> dict[str, Any]:
        """Coverage of the intervals, see `trust.judge_trust`."""
        return judge_trust(self.folder, self._some(N_JUDGED, 60), figures=self.output / "figures")

    def lines(self) -> dict[str, Any]:
        """Areas under the ROC curve: the causal ones (`explain.sensitivity`), and those of attention beside them."""
        found = explain(*self.network, SURVEYS[STREAMED], n_stars=self._some(N_EXPLAINED, 4))
        found.save_figures(self.output / "figures")
        told = found.to_dict()
        attention = {f"{label}_auc": score["attention_auc"] for label, score in told["scores"].items()}
        return told["lines"] | {"attention": attention, "wrong_lines": told["wrong_lines"], "n_stars": told["n_stars"]}

    def ood(self) -> dict[str, Any]:
        """How often a wrong input is the stranger one of it and a good spectrum: the lower value of two surveys.

        Both are observed as in training.
        """
        if not (self.folder / FILE_NAME).is_file():
            return {"left_out": f"the model has no {FILE_NAME}; make it with: spectrafm calibrate {self.start}"}
        limits = Applicability.load(self.folder)
        n, recipe = self._some(N_STRANGE, 20), read_recipe_of(self.folder)
        conditions = {STREAMED: recipe["conditions"], recipe["beside"]: recipe["beside_conditions"]}
        per_survey = {
            name: ood_auroc(*self.network, limits, SURVEYS[name], n, conditions=SurveyConditions(**told))
            for name, told in conditions.items()
        }
        lowest = {family: min(told[family] for told in per_survey.values()) for family in FAMILIES}
        return lowest | {"per_survey": per_survey, "n_spectra": n, "risk_coverage": self.abstention(limits)}

    def abstention(self, limits: Applicability) -> dict[str, float]:
        """Spread of [Fe/H] of real stars, dex, if the least trusted ones are left unanswered: mean over all shares.

        The stars are the training and validation stars of MILES, which a model of synthetic stars has not seen. The
        median error, which is theory's, is taken off: the spread is the RMSE of what is left.
        """
        model, extractor = self.network
        library, label = load_library("miles"), get_label("fe_h")
        stars = [*library.split("train"), *library.split("validation")]
        rows = rows_of(extractor, stars)
        answers = ask(model, extractor, rows, 64)
        column = extractor.label_names.index("fe_h")
        told = Predicted.of(extractor, *answers)
        residual = told.mean[:, column] - np.array([star.labels["fe_h"] for star in stars])
        by = {
            "by its checks": np.array([verdict.score for verdict in limits.check(extractor, rows, answers)]),
            "by sigma": told.sigma[:, column],
            "at random": np.random.default_rng(0).random(len(stars)),
        }
        curves = {name: risk_coverage(residual - np.median(residual), score) for name, score in by.items()}
        shown = {name: (answered, risk) for name, (answered, risk, _) in curves.items()}
        plot_risk_coverage(shown, label, self.output / "figures" / "risk_coverage.png")
        return {name: area for name, (_, _, area) in curves.items()}
