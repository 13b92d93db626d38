"""Options of the compiler for programs that run shorter than they compile."""

QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
}
# The same for XLA_FLAGS. `launch/test.sh` gives them to the fast tests.
FLAGS = [f"--{name}={str(value).lower()}" for name, value in QUICK.items()]
