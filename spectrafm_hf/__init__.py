"""SpectraFM, native to Hugging Face: labels of stars from their spectra.

    import spectrafm_hf
    spectrafm_hf.predict("star.fits")  # a table: labels in K and dex with their intervals, and what speaks against them

`predict` takes files, folders, arrays, tables, specutils and datasets. Importing the package registers the model with
AutoConfig, AutoModel and AutoFeatureExtractor, and the pipeline "stellar-labels". Beyond what stands here:

* `examples.example`: stars that ship, with known labels;
* `readers.any_file.read_spectrum`: a file -> `Spectrum`;
* `catalogue.label_survey`: a survey -> a catalogue; `similar.SimilarStars`: the stars of one most like another;
* `hub.load_pretrained`: model and extractor of a folder or a Hub repository;
* `stages.run_stage`, `few_shot_kit`: training.
"""

import gc
from typing import TYPE_CHECKING, Any

_collects = gc.isenabled()
gc.disable()  # what transformers imports stays: to look for garbage in it again and again takes a tenth of the time
try:
    from transformers import AutoConfig, AutoFeatureExtractor, AutoModel
    from transformers.pipelines import PIPELINE_REGISTRY

    from .checkpoints import shipped
    from .configuration_spectrafm import SpectraFMConfig
    from .feature_extraction_spectrafm import SpectraFMFeatureExtractor
    from .modeling_spectrafm import SpectraFMForLabelPrediction, SpectraFMLabelOutput, SpectraFMModel
    from .pipeline_spectrafm import PIPELINE, StellarLabelsPipeline
    from .spectra import Spectrum, air_to_vacuum, vacuum_to_air
finally:
    if _collects:
        gc.enable()

if TYPE_CHECKING:
    from .labelling import predict

AutoConfig.register("spectrafm", SpectraFMConfig, exist_ok=True)
AutoModel.register(SpectraFMConfig, SpectraFMForLabelPrediction, exist_ok=True)
AutoFeatureExtractor.register(SpectraFMConfig, SpectraFMFeatureExtractor, exist_ok=True)
if PIPELINE not in PIPELINE_REGISTRY.supported_tasks:
    PIPELINE_REGISTRY.register_pipeline(PIPELINE, pipeline_class=StellarLabelsPipeline, pt_model=AutoModel)


def __getattr__(name: str) -> Any:
    """`predict` reads files and checks what it reads: more than a training needs to import."""
    if name == "predict":
        from .labelling import predict

        return predict
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


__all__ = [
    "PIPELINE",
    "SpectraFMConfig",
    "SpectraFMFeatureExtractor",
    "SpectraFMForLabelPrediction",
    "SpectraFMLabelOutput",
    "SpectraFMModel",
    "Spectrum",
    "StellarLabelsPipeline",
    "air_to_vacuum",
    "predict",
    "shipped",
    "vacuum_to_air",
]
