"""The command line: presentation only. It needs the extra ``cli``, so nothing else of the package imports it."""
