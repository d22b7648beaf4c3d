"""The network in plain PyTorch, one file a part of the paper: readable, differentiable, the engine's reference."""
