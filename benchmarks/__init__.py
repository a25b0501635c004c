"""Measurements that anyone can repeat; each module says what it measures and how to run it."""
