"""Adapters to other projects' interfaces, each a module that imports its host itself: nothing is imported here."""
