"""Packaging: the wheel's top-level names are `mgpt` and `data_pipeline`.

`conf/` and `launch/` stand at the top of the checkout, where a person looks for them, and install
as `mgpt.conf` and `mgpt.launch`. Versions that the scripts install are pinned in
`launch/constraints.txt`; here stand the ranges that work.
"""

from setuptools import find_packages, setup

CONF_FOLDERS = [p.replace(".", "/") for p in find_packages("conf")]

setup(
    name="mgpt",
    version="0.1.0",
    description="Transformers that read and write text and pictures as one sequence",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=[
        *find_packages(include=["mgpt", "mgpt.*", "data_pipeline", "data_pipeline.*"]),
        "mgpt.conf",
        *(f"mgpt.conf.{p.replace('/', '.')}" for p in CONF_FOLDERS),
        "mgpt.launch",
    ],
    package_dir={"mgpt.conf": "conf", "mgpt.launch": "launch"},
    package_data={
        "data_pipeline.scenes": ["*.json"],
        "mgpt.tokenizers": ["README.md", "pretrained/*.md", "pretrained/*/*"],
        "mgpt.conf": ["*.yaml", "*/*.yaml", "*/*/*.yaml"],
        "mgpt.launch": ["*.sh", "*.txt", "*.sbatch"],
    },
    install_requires=[
        "torch>=2.11,<2.14",
        "numpy>=2.0",
        "Pillow>=11.0",
        "safetensors>=0.5",
        "sentencepiece>=0.2",
        "tokenizers>=0.21",
        "hydra-core>=1.3.2,<1.4",
        "omegaconf>=2.3,<2.4",
        "pydantic>=2.12,<3",
        "PyYAML>=6.0",
        "fsspec>=2024.12",
        "braceexpand>=0.1.7",
        "webdataset>=1.0",
        "wandb>=0.19",
        "rich>=13.7",
        "deepspeed>=0.19,<0.20",
        "scikit-image>=0.25",
    ],
    extras_require={
        "s3": ["s3fs>=2024.12"],
        "gs": ["gcsfs>=2024.12"],
        "http": ["aiohttp>=3.9"],
        "parquet": ["pyarrow>=17"],
        "metrics": ["torchmetrics>=1.6", "torchvision>=0.26"],
        "test": [
            "pytest>=8.0",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "transformers>=5.0,<6",
            "pyarrow>=17",
            "s3fs>=2024.12",
            "moto[s3]>=5.0",
            "flask>=3.0",
            "flask-cors>=5.0",
            "torchmetrics>=1.6",
        ],
        "dev": ["ruff>=0.6", "mypy>=1.11"],
    },
    entry_points={"console_scripts": ["mgpt = mgpt.cli.command:console"]},
)
