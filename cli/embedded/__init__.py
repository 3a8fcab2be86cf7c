"""PostgreSQL, Valkey and our own processes, run in one data folder for a person without servers."""
