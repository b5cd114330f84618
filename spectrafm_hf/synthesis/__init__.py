"""Labels -> flux: where synthetic spectra come from."""
