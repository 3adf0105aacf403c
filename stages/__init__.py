"""The recipes of the stages, from text to a report."""
