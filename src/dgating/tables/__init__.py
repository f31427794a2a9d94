"""Feature selection for a table in a file: reading, kinds of columns, encoding, the fit, the report, predictions."""
