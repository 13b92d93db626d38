"""Qwen2.5-VL (arXiv 2502.13923): vision encoder, M-RoPE decoder, Hugging Face weights."""
