"""Makes a base policy: a taxonomy-supervised vision encoder, and completions to imitate."""
