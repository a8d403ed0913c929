"""Attacks on a running server by other people's tools, one result schema, and the gate."""
