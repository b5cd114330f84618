"""SpectraFM, native to Hugging Face.

Importing it registers the model with AutoConfig, AutoModel and AutoFeatureExtractor.
"""

from transformers import AutoConfig, AutoFeatureExtractor, AutoModel

from .configuration_spectrafm import SpectraFMConfig
from .feature_extraction_spectrafm import SpectraFMFeatureExtractor
from .modeling_spectrafm import SpectraFMForLabelPrediction, SpectraFMLabelOutput, SpectraFMModel
from .spectra import Spectrum, air_to_vacuum, vacuum_to_air

AutoConfig.register("spectrafm", SpectraFMConfig, exist_ok=True)
AutoModel.register(SpectraFMConfig, SpectraFMForLabelPrediction, exist_ok=True)
AutoFeatureExtractor.register(SpectraFMConfig, SpectraFMFeatureExtractor, exist_ok=True)

__all__ = [
    "SpectraFMConfig",
    "SpectraFMFeatureExtractor",
    "SpectraFMForLabelPrediction",
    "SpectraFMLabelOutput",
    "SpectraFMModel",
    "Spectrum",
    "air_to_vacuum",
    "vacuum_to_air",
]
