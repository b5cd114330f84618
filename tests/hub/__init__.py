"""The package against a Hub: real clients, a local server (`local_hub`), no network. Run with `make test-hub`."""
