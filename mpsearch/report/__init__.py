"""Reports: tables for a terminal and pictures for a page."""
