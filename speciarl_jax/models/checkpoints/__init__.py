"""Checkpoints of policies in the layouts of Hugging Face: whole models, and adapters of PEFT."""
