"""``python -m scoresde``: the command line."""

from scoresde.app.cli import main

if __name__ == "__main__":
    main(prog_name="scoresde")
