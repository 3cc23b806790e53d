"""The version of Octavo; CMake, the wheel and `octavo --version` all read this line."""

__version__ = "0.1.0"
