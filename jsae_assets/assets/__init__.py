"""The assets, one file for each family. Factories make them from the catalog; their bodies mostly call jsae_core."""
