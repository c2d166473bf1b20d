"""Start scripts; installs as data of `mgpt.launch`."""
