"""Test-time finetuning of the CogNVS transformer on one video: train.py, from settings to loop."""
