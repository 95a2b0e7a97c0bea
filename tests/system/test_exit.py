"""Whatever ends a process, in whatever order it comes: one line, one exit code, and no waiting."""

import signal
import subprocess

import pytest
from commands import Result, finish, start_python

START = """
import ctypes, signal, threading, time
from sra_jax.cli import exit as endings
libc = ctypes.CDLL(None)
mutex = ctypes.create_string_buffer(64)

def wait_in_c():  # for what never comes, as in a collective whose other processes are slow
    for _ in range(2):
        libc.pthread_mutex_lock(mutex)

def abort():  # as JAX does when it has lost a process
    threading.Thread(target=libc.abort).start()

endings.install_signal_handlers()
"""
STOPPED = "error: stopped by {}; run the same command again\n"
LOST = "[1 of 2] error: another process of this run has most likely ended"


def start_waiting(code=""):
    """A process that has run `code`, and waits in C."""
    ready = "print('ready', flush=True); wait_in_c()"
    process = start_python(["-c", f"{START}{code}\n{ready}"])
    assert process.stdout.readline() == "ready\n"
    return process


def start_of_two(code, grace):
    """One of two processes, which runs `code` and leaves others `grace` seconds to say a word."""
    setting = f'endings.GRACE_SECONDS = {grace}; endings.speak_as("[1 of 2] ")'
    return start_python(["-c", f"{START}{setting}\n{code}"])


@pytest.mark.parametrize(
    ("number", "name", "code"), [(signal.SIGTERM, "SIGTERM", 75), (signal.SIGINT, "Ctrl-C", 130)]
)
def test_a_signal_is_heeded_while_the_main_thread_is_in_c(number, name, code):
    process = start_waiting()
    process.send_signal(number)
    assert finish(process) == Result(code, "", STOPPED.format(name))


def test_in_the_loop_a_second_interrupt_is_heeded_too():
    loop = """
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: None)
"""
    process = start_waiting(loop)
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):  # the loop's to heed
        process.send_signal(number)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)
    process.send_signal(signal.SIGINT)
    assert finish(process) == Result(130, "", STOPPED.format("Ctrl-C"))


ENDS = {  # code, what is said first, and the exit code without a signal
    "an error": ("endings.fail('cut short', 1)", "[1 of 2] error: cut short", 1),
    "a refusal": ("endings.fail('batch size 7', 2)", "[1 of 2] error: batch size 7", 2),
    "an abort": ("abort(); wait_in_c()", LOST, 1),
    "an error, then an abort": (
        "threading.Timer(0.1, libc.abort).start(); endings.fail('cut short', 1)",
        "[1 of 2] error: cut short",
        1,
    ),
    "an abort, then an error": ("abort(); time.sleep(0.1); endings.fail('cut short', 2)", LOST, 1),
    "an abort, then the end": ("abort(); time.sleep(0.1); endings.leave(0)", LOST, 1),
}


@pytest.mark.parametrize(("code", "said", "exit_code"), ENDS.values(), ids=ENDS)
def test_one_line_is_said_and_the_first_reason_counts(code, said, exit_code):
    result = finish(start_of_two(code, grace=0.5))
    (line,) = result.err.splitlines()
    assert line.startswith(said) and result.code == exit_code


@pytest.mark.parametrize(("code", "said", "exit_code"), ENDS.values(), ids=ENDS)
def test_a_signal_that_follows_tells_that_it_was_no_fault(code, said, exit_code):
    """The others were stopped first; but what was refused stays refused."""
    process = start_of_two(code, grace=30 if exit_code == 1 else 0.5)
    assert process.stderr.readline().startswith(said)
    process.terminate()
    expected = (75, "[1 of 2] " + STOPPED.format("SIGTERM")) if exit_code == 1 else (2, "")
    result = finish(process)
    assert (result.code, result.err) == expected
