"""VARSR against diffusion super-resolution, in one process and by one clock: see benchmarks/compare_diffusion.py.

Peers are built from published configurations with diffusers' classes and random weights. docs/comparison.md has the
rules.
"""
