"""Models that run as one step: their caches, masks, devices, vocabularies and adapters."""
