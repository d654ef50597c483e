"""Losses in, weights out: one small thing per method."""
