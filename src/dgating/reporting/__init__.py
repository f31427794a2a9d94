"""Look at a gated model: tables and plots."""
