"""How every command runs: its flags, its help, and how it ends.

Exit codes: 0 done; 2 bad input, told in one line on stderr; 75 stopped by SIGTERM and 130 by
Ctrl-C, both after saving (run the same command again); 1 anything else.
"""

import logging
import sys
from collections.abc import Callable, Sequence

from absl import flags

from sra_jax.errors import InputError, RunError

BAD_INPUT = 2
FAILED = 1
HELP = ("--help", "-h", "--helpfull", "--helpshort")


def run(main: Callable[[], int | None], description: str, required: Sequence[str]) -> None:
    """Parses the command line into the flags of the calling module and exits with `main`'s code.

    `description` is the module's docstring; `required` names the flags that must be given.
    """
    _log_to_stdout()
    if any(argument in HELP for argument in sys.argv[1:]):
        print(f"{description.strip()}\n{flags.FLAGS.main_module_help()}")
        sys.exit(0)
    try:
        _parse(required)
        sys.exit(main())
    except InputError as error:
        _end(error, BAD_INPUT)
    except RunError as error:
        _end(error, FAILED)


def _parse(required: Sequence[str]) -> None:
    try:
        left = flags.FLAGS(sys.argv)[1:]
    except InputError:
        raise
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise InputError(_one_line(error)) from None  # flags and ml_collections raise all of these
    if left:
        raise InputError(f"unexpected argument {left[0]!r}; flags look like --name=value")
    for name in required:
        if flags.FLAGS[name].value is None:
            raise InputError(f"--{name} is missing; see --help")


def _log_to_stdout() -> None:
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log = logging.getLogger("sra_jax")
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    log.propagate = False


def _one_line(error: BaseException) -> str:
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    return " ".join(str(text).split())


def _end(error: Exception, code: int) -> None:
    print(f"error: {_one_line(error)}", file=sys.stderr)
    sys.exit(code)
