"""`python -m drivekd` is the command `drivekd`."""

from drivekd.cli.app import main

if __name__ == "__main__":
    main()
