"""Run folders to pictures and tables."""
