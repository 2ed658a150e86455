"""Types of the compiled half; checked against the module by stubtest."""

__version__: str
