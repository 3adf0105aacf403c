"""The command line: one verb a file, each thin."""
