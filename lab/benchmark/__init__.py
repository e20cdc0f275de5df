"""Timing, records, experiments and reports: where every number that the course shows comes from."""
