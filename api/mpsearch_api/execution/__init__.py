"""Claiming jobs and running them, each in a process that can be killed."""
