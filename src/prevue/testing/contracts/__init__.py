"""Contract suites: every backend and every fake passes the same."""
