"""Lists the packages; the rest is in pyproject.toml. The folder kernels/ is installed as varsr_engine.kernels."""

from setuptools import find_packages, setup

setup(
    packages=[
        "varsr_engine",
        *(f"varsr_engine.{name}" for name in find_packages("varsr_engine")),
        "varsr_engine.kernels",
        *(f"varsr_engine.kernels.{name}" for name in find_packages("kernels")),
    ],
    package_dir={"varsr_engine": "varsr_engine", "varsr_engine.kernels": "kernels"},
    package_data={"varsr_engine": ["py.typed", "assets/*"]},
)
