"""What the answers of the live servers must not say."""

CANARY = "q7x2m9k4r8t5v3z6"
ECHO_CANARY = "w4w5w6w7w8w9"
"""Words 4 to 9 of `echo_llm.py`."""
