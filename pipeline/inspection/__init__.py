"""Sheets, statistics and verification of records: what a person looks at."""
