"""Fakes, clock and the ports' contract suites."""
