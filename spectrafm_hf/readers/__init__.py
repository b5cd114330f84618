"""One module per survey format: file -> `spectra.Spectrum` in vacuum Angstrom, rest frame."""
