"""What programs that try to get out begin with."""

ATTEMPTS = """
import ctypes, os, sys
import _socket as socket

libc = ctypes.CDLL(None, use_errno=True)
found = {}

def attempt(name, work):
    try:
        found[name] = work()
    except Exception as error:
        found[name] = f"refused: {type(error).__name__}"

def call(number, *arguments):
    if libc.syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), "")
    return "open"
"""
