"""Benchmarks beside the peers; ``make bench`` runs them. Nothing here is part of the package."""
