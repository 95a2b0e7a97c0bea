"""How every command runs: its flags, its help, and how it ends.

Exit codes: 0 done; 2 bad input, told in one line on stderr; 75 stopped by SIGTERM and 130 by
Ctrl-C (run the same command again: what can be saved is saved); 1 anything else.
"""

import dataclasses
import logging
import os
import re
import sys
import traceback
import typing
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NoReturn

from absl import flags
from ml_collections import config_flags

from sra_jax.cli.exit import fail, install_signal_handlers, leave, say_on_abort, speak_as, speaker
from sra_jax.core.errors import BAD_INPUT, FAILED, LOST, InputError, RunError
from sra_jax.core.files import disk_advice

flags.disclaim_key_flags()  # what is defined here is for the command that asks for it
DEFINE = {
    str: flags.DEFINE_string,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    bool: flags.DEFINE_bool,
}
_renamed: dict[str, str] = {}  # flags of version 0.1, and what they are called now
HELP = ("--help", "-h", "--helpfull", "--helpshort")
# What a flag expects, by what the libraries say where it is given something else.
EXPECTED = {
    "for int()": "an integer",
    "to float": "a number",
    "Non-boolean": "True or False",
    "as a ConfigDict": "a field of it, as in --config.train.steps=1000",
}


def run(command: ModuleType) -> NoReturn:
    """Runs a module of `sra_jax.cli` on the flags in `sys.argv`, and exits with its code."""
    _log_to_stdout()
    install_signal_handlers()
    required = command.define_flags()
    if any(argument in HELP for argument in sys.argv[1:]):
        print(f"{command.__doc__.strip()}\n{flags.FLAGS.module_help(command.__name__)}")
        sys.exit(0)
    try:
        _parse(required)
        leave(command.main() or 0)
    except InputError as error:
        fail(error, BAD_INPUT)
    except RunError as error:
        fail(error, FAILED)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        fail(f"{where}{error.strerror or error}; {disk_advice(error)}", FAILED)
    except Exception as error:
        if not speaker():
            raise
        # XLA's errors begin with a status, be they a JaxRuntimeError or, out of a dispatch, a
        # ValueError.
        if not re.match(r"[A-Z_]+: ", str(error)) or "RESOURCE_EXHAUSTED" in str(error):
            traceback.print_exc()  # no other process is to blame
            leave(FAILED)
        fail(f"{str(error)[:300]}: {LOST}", FAILED)


def define_config_flag() -> None:
    """Defines --config and, by it, a flag for every field of the config."""
    config_flags.DEFINE_config_file(
        "config", None, "Config file, after a colon its argument; --config.FIELD=VALUE overrides."
    )


def read_config() -> dict[str, Any]:
    """The config as a nested dict. Raises InputError if its file could not be loaded."""
    try:
        return flags.FLAGS.config.to_dict()
    except OSError as error:  # the flags library keeps this failure until somebody looks
        raise InputError(_explain(error)) from None
    except AttributeError:
        raise InputError("the file of --config must return an ml_collections.ConfigDict") from None


def define_request_flags(request: type) -> list[str]:
    """Defines a flag for every field of a dataclass of `jobs.requests` that has a help text.

    Returns:
      The names of the fields without a default, which must be given.
    """
    kinds, required = typing.get_type_hints(request), []
    for field in _flag_fields(request):
        kind = kinds[field.name]
        (kind,) = [k for k in typing.get_args(kind) or (kind,) if k is not type(None)]
        missing = field.default is dataclasses.MISSING
        required += [field.name] if missing else []
        DEFINE[kind](field.name, None if missing else field.default, field.metadata["help"])
        if was := field.metadata["was"]:
            _renamed[was] = field.name
    return required


def read_request(request: type) -> Any:
    """A `request` of what the flags say."""
    return request(**{f.name: flags.FLAGS[f.name].value for f in _flag_fields(request)})


def _flag_fields(request: type) -> list[dataclasses.Field]:
    return [field for field in dataclasses.fields(request) if "help" in field.metadata]


def _parse(required: Sequence[str]) -> None:
    for argument in sys.argv[1:]:
        if argument.lstrip("-").startswith("config.sra."):
            name = argument.lstrip("-").partition("=")[0]
            new = name.replace("config.sra.", "config.method.sra.")
            raise InputError(f"--{name} is called --{new} now; use that name")
        old = argument.lstrip("-").partition("=")[0]
        if argument.startswith("-") and old in _renamed:
            raise InputError(f"--{old} is called --{_renamed[old]} now; use that name")
    try:
        left = flags.FLAGS(sys.argv)[1:]
    except (Exception, SystemExit) as error:  # a config file is code, and may raise anything
        raise InputError(_explain(error)) from None
    if left:
        raise InputError(f"unexpected argument {left[0]!r}; flags look like --name=value")
    for name in required:
        if flags.FLAGS[name].value in (None, ""):
            raise InputError(f"--{name} is missing or empty; see --help")


def _explain(error: BaseException) -> str:
    """What is wrong with the command line, without what the libraries wrap around it."""
    text = str(error)
    if field := re.search(r'Did you mean "(.*?)" instead of "(.*?)"', text):
        return f"unknown config field {field[2]!r}; did you mean {field[1]!r}?"
    if isinstance(error, KeyError | AttributeError) and text.startswith("\"'"):
        return f"unknown config field {text[1:-1]}; see the config file for what there is"
    if "failure to load" in text:
        reason = re.sub(r".*failure to load: |\[Errno \d+\] ", "", _last_line(error)).rstrip(".")
        return f"cannot load --config: {reason}; name a file, as in --config=configs/digits.py"
    if "Traceback" in text:  # what a config file raised, as text
        return re.sub(r"^[\w.]*InputError: ", "", _last_line(error))
    if isinstance(error, flags.IllegalFlagValueError):
        given, _, reason = text.removeprefix("flag ").partition(": ")
        found = (what for said, what in EXPECTED.items() if said in reason)
        return f"cannot take {given}, expected {next(found, reason)}; see --help"
    if isinstance(error, flags.Error):
        return text
    given = next((part for part in sys.argv if part.startswith("--config=")), "--config")
    return (
        f"the file of {given} fails with {type(error).__name__}: {text}; mend it, or name another"
    )


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].strip()


def define_process_flags() -> None:
    """Defines the flags by which `join_processes` finds the other processes of a command."""
    flags.DEFINE_string(
        "coordinator", None, "HOST:PORT of process 0, where JAX cannot find it by itself."
    )
    flags.DEFINE_integer("num_processes", None, "How many processes, likewise.")
    flags.DEFINE_integer("process_id", None, "Which of them this is, likewise.")


def join_processes(*, stop_together: bool = False) -> None:
    """Joins the processes that run this command together. Raises InputError if they do not meet.

    With `stop_together` a SIGTERM to one of several is told to all, for `StopSignals` to heed.
    """
    import jax  # here: `compile` has to prepare the environment before this

    from sra_jax.distributed.launch import CONNECT_SECONDS, start_processes

    values = flags.FLAGS
    say_on_abort(
        f"error: the processes did not meet within {CONNECT_SECONDS} s; start all of them, and "
        "check --coordinator, --num_processes and --process_id"
    )
    jax.config.update("jax_enable_preemption_service", stop_together)  # it takes SIGTERM away
    start_processes(values.coordinator, values.num_processes, values.process_id)
    _name_process(jax.process_index(), jax.process_count())


def _name_process(index: int, count: int) -> None:
    """Marks what this process says when it is one of several, of which the first alone reports."""
    if count == 1:
        say_on_abort(None)
        return
    name = f"[process {index} of {count}] "
    for handler in logging.getLogger("sra_jax").handlers:
        handler.setFormatter(logging.Formatter(f"%(asctime)s {name}%(message)s", "%H:%M:%S"))
        handler.setLevel(logging.INFO if index == 0 else logging.WARNING)
    speak_as(name)


class _StdoutHandler(logging.StreamHandler):
    """Logs to stdout; where that cannot be written to, says so once, and the command goes on."""

    def __init__(self):
        super().__init__(sys.stdout)

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            return super().handleError(record)
        self.setStream(open(os.devnull, "w"))  # noqa: SIM115 - to the end of the process
        sys.stdout = self.stream  # or Python fails to flush it when it ends
        return print(f"{speaker()}warning: no more log: {error.strerror}", file=sys.stderr)


def _log_to_stdout() -> None:
    handler = _StdoutHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log = logging.getLogger("sra_jax")
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    log.propagate = False
