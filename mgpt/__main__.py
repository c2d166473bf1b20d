"""`python -m mgpt` is `mgpt`."""

from mgpt.cli.command import console

if __name__ == "__main__":
    console()
