"""Blocks of networks that several tasks share."""
