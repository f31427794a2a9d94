"""The experiments of the paper, each run by one command."""
