"""A benchmark of each kernel, for pytest: `make bench-kernels`, or

    pytest benchmarks/kernels                                    # varsr-mini's shapes on a CPU, d24's on a GPU
    pytest benchmarks/kernels -k mlp                             # one op; -k "mlp and cpu" one backend of it
    pytest benchmarks/kernels --model d24 --every-call           # the published shapes, all of them
    pytest benchmarks/kernels --benchmark-json kernels.json      # every round, rates and ratios too

There is no list of kernels here: the calls are those that the engine makes for an image, the contestants at a call are
the backends that its op has registered. A new op or backend is in the next run.

All contestants of a call take turns, round by round, so that a busy machine slows all of them. pytest-benchmark, which
times one after the other, gets those rounds through a clock that plays them back (`replay.py`). In a round the order
is fixed, eager first: each contestant finds in the caches what the one before it left.
"""
