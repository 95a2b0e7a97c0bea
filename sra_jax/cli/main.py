"""`sra-jax VERB`: finds the command, and lists all of them."""

import ast
import difflib
import importlib
import sys
from pathlib import Path

from sra_jax.core.errors import BAD_INPUT

VERBS = ("train", "sample", "evaluate", "probe", "encode", "convert", "compile")


def main() -> None:
    """Runs the command that the first argument names, on the others."""
    verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if verb in ("--help", "-h", "help"):
        print(overview())
        return
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        print(
            f"error: unknown command {verb!r}, expected one of {', '.join(VERBS)}{hint}",
            file=sys.stderr,
        )
        sys.exit(BAD_INPUT)
    from sra_jax.cli import app  # not above: the overview needs no flags

    sys.argv = [f"sra-jax {verb}", *sys.argv[2:]]
    app.run(importlib.import_module(f"sra_jax.cli.{verb}"))


def overview() -> str:
    """A line for every command: the first of its module's docstring."""
    lines = ["usage: sra-jax VERB [--flag=value ...]   (or: python -m sra_jax VERB ...)", ""]
    for verb in VERBS:
        source = Path(__file__).with_name(f"{verb}.py").read_text()
        summary = ast.get_docstring(ast.parse(source)).partition("\n")[0]
        lines.append(f"  {verb:<9} {summary}")
    return "\n".join([*lines, "", "sra-jax VERB --help explains a command and its flags."])
