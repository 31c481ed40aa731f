"""The command line: thin commands over `engine.run`."""
