"""One machine: database, cluster and GitHub for a demo, a laptop and the tests."""
