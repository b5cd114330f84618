"""transformers' ConfigTester on SpectraFMConfig."""

import unittest

import pytest
from conftest import ARCHITECTURE, PATCH_SIZE
from transformers_tests.test_configuration_common import ConfigTester

from spectrafm_hf import SpectraFMConfig

pytestmark = pytest.mark.mixins


class SpectraFMConfigTester(ConfigTester):
    def create_and_test_config_with_num_labels(self):
        """Overridden: a star's labels have names, so their number follows label_names and is not set on its own."""
        names = ["teff", "logg", "fe_h", "mg_fe", "c_fe"]
        config = self.config_class(**self.inputs_dict, label_names=names)
        assert config.num_labels == len(names)
        assert config.id2label == dict(enumerate(names))
        assert config.label2id == {name: number for number, name in enumerate(names)}


class SpectraFMConfigTest(unittest.TestCase):
    def test_config(self):
        given = {"patch_size": PATCH_SIZE, **ARCHITECTURE}
        SpectraFMConfigTester(self, SpectraFMConfig, has_text_modality=False, **given).run_common_tests()
