"""`make dist` and the tree that `make install` installs: program, interpreter, packages and libraries in one directory.

A node has no Python of ours, no compiler and no network to a package index, and may be of another distribution than the
machine that builds. So the tree carries everything down to, but without, the C library.
"""
