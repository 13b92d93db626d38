"""Policy losses and KL estimators: per-token functions with no model inside."""
