"""A file a command, by its name: ``add_arguments(parser)`` and ``run(args)``, which returns the exit status.

``config_arguments`` has the options that several commands take, ``ranks`` starts the ranks of those that need them.
"""
