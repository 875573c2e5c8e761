"""What pyproject.toml can't say: find the packages, and ship the top-level `conf/` as `kdlab.conf`."""

from setuptools import find_namespace_packages, setup

setup(
    packages=[*find_namespace_packages(include=["kdlab", "kdlab.*"]), "kdlab.conf"],
    package_dir={"kdlab.conf": "conf"},
)
