"""The assets, a file a family. Each body is a few lines that call jsae_core; each factory takes the catalog."""
