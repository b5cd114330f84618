"""The page of the Space: what it draws, and the whole of it in a browser. Run with `make test-demo`."""
