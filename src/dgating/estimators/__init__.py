"""Estimators for scikit-learn: linear models, and networks, that select groups of columns."""
