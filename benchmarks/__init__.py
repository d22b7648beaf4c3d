"""Speed, measured: the engine against the published way of running the network. Not tests."""
