"""Rationales: who writes them, and the journal of what was paid for."""
