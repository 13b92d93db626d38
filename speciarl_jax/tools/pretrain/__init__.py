"""Making a base policy: taxonomy-supervised vision tower, and answers to imitate."""
