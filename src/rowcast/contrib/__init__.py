"""Rowcast beside the frameworks that applications are made with: each module needs its own framework only."""
