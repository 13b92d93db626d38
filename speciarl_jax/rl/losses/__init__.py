"""Policy losses and KL estimators: per-token functions with no model inside.

A method of the literature is a surrogate (a module here with `policy_loss`), the weights of its
tokens (`token_weights`) and an advantage (`advantages.py`):

| method | surrogate | clip | token weights | advantage | KL |
|---|---|---|---|---|---|
| GRPO | `grpo` | .2 / .2 | `sequence_mean` (the paper of SpeciaRL: `token_mean`) | mean, std | k3 |
| Dr.GRPO | `grpo` | .2 / .2 | `constant` | mean | none |
| DAPO | `grpo` | .2 / .28 | `token_mean` | mean, std | none |
| GSPO | `gspo` | 3e-4 / 4e-4 | `sequence_mean` | mean, std | none |
| RLOO | `grpo` | .2 / .2 | any | leave one out | any |
| CISPO | `cispo` | 1 / 4 | `token_mean` | mean, std | none |
| SAPO | `sapo` | a gate | `sequence_mean` | mean, std | none |
| GMPO | `gmpo` | .4 / .4 nats | `sequence_mean` | mean, std | none |
| REINFORCE++ with baseline | `grpo` | .2 / .2 | `token_mean` | mean, std of the batch | k2 |

Supervised training uses `likelihood`. The KL (`kl`) and the loss of pairs (`rank`) are added to any
of them.
"""
