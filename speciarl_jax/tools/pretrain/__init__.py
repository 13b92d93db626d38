"""Making a base policy: taxonomy-supervised vision encoder, and answers to imitate."""
