"""Leak-free comparisons: who learns what from which stars, and is asked about which others."""
