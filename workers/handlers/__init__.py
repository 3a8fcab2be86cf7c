"""One module per kind of job. Imported in worker processes only: most of them bring torch."""
