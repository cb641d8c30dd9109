"""The commands of ``qkit``, a module each.

`options` has the options that commands share, in groups; `command` makes a command of a function that takes such groups, and
does what all commands have in common: the configuration file, JSON, progress, interrupts, exit codes. Nothing here imports
torch before a command runs, so that ``--help`` answers at once.
"""
