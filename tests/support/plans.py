"""Plans of configurations on any mesh, for tests."""

import jax

from speciarl_jax.models import family
from speciarl_jax.tools.plan import abstract_run, programs


def plan(config, model, mesh, grid, prompt_tokens):
    """The run of a configuration for images of `grid` patches and prompts of so many tokens."""
    run = abstract_run.make_run(config, model, mesh)
    padded = family.of(model).vision_sizes([[grid]], model.vision, 1)
    return programs.of_run(run, programs.Sizes(*grid, *padded, prompt_tokens))


def outputs(program):
    """Shapes of a program's results."""
    return jax.eval_shape(program.function, *program.arguments)
