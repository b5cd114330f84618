"""transformers' ModelTesterMixin and TrainingTesterMixin on SpectraFM's two models."""

import unittest

import pytest
import torch
from conftest import ARCHITECTURE, PATCH_SIZE, random_batch, tiny_config
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES
from transformers_tests.test_modeling_common import ModelTesterMixin
from transformers_tests.test_training_mixin import TrainingTesterMixin

from spectrafm_hf import SpectraFMConfig, SpectraFMForLabelPrediction, SpectraFMModel

pytestmark = pytest.mark.mixins
without_vocabulary = unittest.skip("Flux is measured, not looked up: there is no vocabulary that could grow or shrink.")

# What auto_map says of a checkpoint, told to the mixin: the tests of training leave out the model without a head.
MODEL_MAPPING_NAMES[SpectraFMConfig.model_type] = SpectraFMModel.__name__


class SpectraFMModelTester:
    """What the mixins ask of a model's tests: sizes, a tiny configuration, inputs.

    Every pixel is a token: the mixins take inputs, mask and hidden states to be of one length, and mask single places
    of it. Tokens of many pixels are tested in test_modeling.py.
    """

    batch_size = 3
    seq_length = 2 * PATCH_SIZE  # pixels: random_batch speaks of tokens of PATCH_SIZE
    is_training = True
    changes = {"patch_size": 1}

    def __init__(self):
        config = self.get_config()
        self.num_hidden_layers = config.num_hidden_layers
        self.num_attention_heads = config.num_attention_heads
        self.hidden_size = config.hidden_size

    def get_config(self):
        return tiny_config(**self.changes)

    def inputs(self):
        rng = torch.Generator().manual_seed(0)
        batch = random_batch(self.batch_size, self.seq_length // PATCH_SIZE)
        batch["flux_error"] = 0.1 * torch.rand(batch["flux"].shape, generator=rng)
        batch["resolving_power"] = 1000.0 + 1000.0 * torch.rand(batch["flux"].shape, generator=rng)
        return batch

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), self.inputs()

    def labels(self):
        rng = torch.Generator().manual_seed(0)
        return torch.randn(self.batch_size, len(self.get_config().label_names), generator=rng)


class SpectraFMPaperModelTester(SpectraFMModelTester):
    """The parts of the published network, and inputs that are no spectrum."""

    changes = {
        "tokens": "pixel",
        "patch_size": 1,
        "encoding_size": ARCHITECTURE["hidden_size"],
        "head_sizes": [16],
        "shared_readout": True,
        "norm_first": False,
        "learned_key_value": True,
        "given_names": ["parallax", "colour"],
    }

    def __init__(self):
        super().__init__()
        self.encoder_seq_length = self.seq_length + len(self.changes["given_names"])
        self.key_length = self.encoder_seq_length + 1  # the learned key

    def inputs(self):
        rng = torch.Generator().manual_seed(0)
        given = torch.randn(self.batch_size, len(self.changes["given_names"]), generator=rng)
        return super().inputs() | {"given": given, "given_errors": torch.full_like(given, 0.1)}


class SpectraFMModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (SpectraFMModel, SpectraFMForLabelPrediction)
    # The mixin guesses a model's age from a copyright line and spares the old ones; this one is not to be spared.
    test_can_init_all_missing_weights_before_2023 = True

    tester_class = SpectraFMModelTester

    def setUp(self):
        self.model_tester = self.tester_class()
        # The test of eager against sdpa gives the main input, the mask, and these.
        self.additional_model_inputs = tuple(set(self.model_tester.inputs()) - {"flux", "attention_mask"})

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        if return_labels and model_class is SpectraFMForLabelPrediction:
            inputs["labels"] = self.model_tester.labels()
        return inputs

    def test_model_get_set_embeddings(self):
        """Overridden as for images: flux is no index into a vocabulary, so what embeds it is an nn.Linear."""
        for model_class in self.all_model_classes:
            model = model_class(self.model_tester.get_config())
            assert isinstance(model.get_input_embeddings(), torch.nn.Linear)
            layer = torch.nn.Linear(2, 2)
            model.set_input_embeddings(layer)
            assert model.get_input_embeddings() is layer
            assert model.get_output_embeddings() is None

    @without_vocabulary
    def test_resize_tokens_embeddings(self):
        pass

    @without_vocabulary
    def test_resize_embeddings_untied(self):
        pass

    @without_vocabulary
    def test_resize_embeddings_untied_no_reinit_on_post_init(self):
        pass


class SpectraFMPaperModelTest(SpectraFMModelTest):
    tester_class = SpectraFMPaperModelTester


class SpectraFMTrainingTest(TrainingTesterMixin, unittest.TestCase):
    """A fixed batch is learned by heart. The mixin knows texts alone, so the spectra are handed to it as one."""

    all_model_classes = (SpectraFMForLabelPrediction,)

    @property
    def model_tester(self):
        return _OverfitTester()

    def _get_model_modality(self):
        return "text"

    def _create_text_training_batch(self, batch_size, seq_length, vocab_size):
        labels = self.model_tester.labels()
        # The gradient is to fade, as that of a squared error does. Between exact labels a likelihood only gets steeper.
        return self.model_tester.inputs() | {"labels": labels, "label_errors": torch.ones_like(labels)}


class _OverfitTester(SpectraFMModelTester):
    def get_config(self):
        config = super().get_config()
        config.vocab_size = 0  # read by the mixin and passed on
        return config
