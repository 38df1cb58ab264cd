"""Comm: collectives between ranks, and progress reports."""
