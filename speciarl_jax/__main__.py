"""Runs any program of the package by its name.

    speciarl                                   lists the programs
    speciarl train --config=configs/quickstart.py --workdir=runs/quickstart

The same as `python -m speciarl_jax.train ...`. Nothing but the named program is imported.
"""

import os
import pathlib
import runpy
import sys

_ROOT = pathlib.Path(__file__).parent


def programs() -> dict[str, pathlib.Path]:
    """Finds the files of all programs by name, those for every day first."""
    found = {name: _ROOT / f"{name}.py" for name in ("train", "evaluate", "predict")}
    tools = [*(_ROOT / "tools").glob("*.py"), *(_ROOT / "tools").glob("*/__main__.py")]
    for path in sorted(tools):
        if '__name__ == "__main__"' in path.read_text():
            found[path.parent.name if path.stem == "__main__" else path.stem] = path
    return found | {"report": _ROOT / "evaluation" / "report" / "__main__.py"}


def usage(known: dict[str, pathlib.Path]) -> str:
    """Lists the programs, each with the first line of its description."""
    lines = ["usage: speciarl PROGRAM [FLAGS]", ""]
    for name, path in known.items():
        description = path.read_text().split('"""')[1]
        lines.append(f"  speciarl {name:18} {description.splitlines()[0]}")
    return "\n".join(lines)


def main() -> None:
    """Runs the program that the first argument names with the arguments behind it.

    Without arguments, or with --help, it lists the programs. A wrong name ends with 78, the exit
    code of all refusals (`runtime/exit_codes.py`, which is not imported, for it imports jax).
    """
    name, known = (sys.argv[1:] or ["--help"])[0], programs()
    if name in ("--help", "-h", "help", "--helpfull"):
        print(usage(known))
    elif name not in known:
        print(f"there is no program {name!r}\n{usage(known)}", file=sys.stderr)
        sys.exit(os.EX_CONFIG)
    else:
        sys.argv = [f"speciarl {name}", *sys.argv[2:]]
        # As for `python -m`: a configuration may import its neighbours.
        sys.path.insert(0, os.getcwd())
        path = known[name].parent if known[name].stem == "__main__" else known[name].with_suffix("")
        module = ".".join(path.relative_to(_ROOT.parent).parts)
        runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
