"""The commands of `spectrafm`, by what they are for; `cli` puts them together.

They read options, call the package and print. What they import is imported when they run, so that `--help` is quick.
"""
