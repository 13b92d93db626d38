"""Places beside `metrics.jsonl` that a training run writes to: `config.logging.writers`.

The name of a writer is that of its module, which has `create(target) -> Writer` and may have
`check(target)`.
"""
