"""One command for all programs: `speciarl train ...`, `speciarl convert ...`.

    speciarl                                   lists the programs
    speciarl train --config=configs/quickstart.py --workdir=runs/quickstart

The same as `python -m speciarl_jax.train ...`.
"""

import pathlib
import runpy
import sys

_ROOT = pathlib.Path(__file__).parent
# Programs that people run every day; the others are tools.
_PROGRAMS = ("train", "evaluate", "predict")


def programs() -> dict[str, str]:
    """Maps the names of all programs to their modules; no module is imported."""
    found = {name: f"speciarl_jax.{name}" for name in _PROGRAMS}
    for path in sorted((_ROOT / "tools").iterdir()):
        name = path.stem
        if (path / "__main__.py").is_file():
            found[name] = f"speciarl_jax.tools.{name}"
        elif path.suffix == ".py" and '__name__ == "__main__"' in path.read_text():
            found[name] = f"speciarl_jax.tools.{name}"
    found["report"] = "speciarl_jax.evaluation.report"
    return found


def main() -> None:
    """Runs the program that the first argument names with the arguments behind it."""
    known = programs()
    if len(sys.argv) < 2 or sys.argv[1] not in known:
        asked = sys.argv[1] if len(sys.argv) > 1 else "--help"
        lines = [f"  speciarl {name:20} {summary(module)}" for name, module in known.items()]
        text = "usage: speciarl PROGRAM [FLAGS]\n\n" + "\n".join(lines)
        if asked in ("--help", "-h", "help", "--helpfull"):
            print(text)
            return
        sys.exit(f"there is no program {asked!r}\n{text}")
    module = known[sys.argv[1]]
    sys.argv = [f"speciarl {sys.argv[1]}", *sys.argv[2:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def summary(module: str) -> str:
    """Reads the first line of a module's description without importing the module."""
    path = _ROOT.joinpath(*module.split(".")[1:])
    path = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    return path.read_text().split('"""')[1].split("\n")[0]


if __name__ == "__main__":
    main()
