"""Hydra's configuration groups; installs as `mgpt.conf`."""
