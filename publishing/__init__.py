"""Publishing a model: a complete repository from the facts of its run, checked where the package is not installed."""
