"""transformers' SequenceFeatureExtractionTestMixin on SpectraFMFeatureExtractor."""

import unittest

import numpy as np
import pytest
from conftest import LABEL_CENTER, LABEL_SCALE, PATCH_SIZE, WINDOW
from transformers_tests.test_sequence_feature_extraction_common import SequenceFeatureExtractionTestMixin

from spectrafm_hf import SpectraFMFeatureExtractor

pytestmark = pytest.mark.mixins


class SpectraFMFeatureExtractionTester:
    """What the mixin asks of an extractor's tests: its parameters, and prepared spectra, each longer than the last."""

    batch_size = 4
    min_seq_length = 200
    max_seq_length = 500
    seq_length_diff = (max_seq_length - min_seq_length) // (batch_size - 1)
    feature_size = 1

    def prepare_feat_extract_dict(self):
        return {
            "patch_size": PATCH_SIZE,
            "wavelength_range": list(WINDOW),
            "label_center": LABEL_CENTER,
            "label_scale": LABEL_SCALE,
        }

    def prepare_inputs_for_common(self, equal_length=False, numpify=False):
        lengths = [self.min_seq_length + i * self.seq_length_diff for i in range(self.batch_size)]
        rng = np.random.default_rng(0)
        spectra = [rng.normal(size=self.max_seq_length if equal_length else n).astype(np.float32) for n in lengths]
        return spectra if numpify else [flux.tolist() for flux in spectra]


class SpectraFMFeatureExtractionTest(SequenceFeatureExtractionTestMixin, unittest.TestCase):
    feature_extraction_class = SpectraFMFeatureExtractor

    def setUp(self):
        self.feat_extract_tester = SpectraFMFeatureExtractionTester()
