"""Test-time finetuning of the CogNVS transformer on one video: train.py, from settings to loop."""

import utils  # noqa: F401  keeps torchao quiet, which diffusers imports
