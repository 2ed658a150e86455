"""Adapters to other libraries, each importable alone."""
