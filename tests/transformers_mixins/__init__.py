"""transformers' own tests of a model, a configuration and a feature extractor, run on SpectraFM: `make test-mixins`.

What else the source distribution holds has nothing to say here. PipelineTesterMixin tests transformers' own tasks, on
tiny checkpoints of its own classes from the Hub, listed in a file that the source distribution lacks; no task of them
is about spectra. The mixins of FSDP, of tensor and of expert parallelism import helpers that are not there either, and
those of export and of generation are not there at all.
"""
