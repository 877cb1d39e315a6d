"""The command `jsae`, from its first moment to its last.

Here: what Ctrl-C does before the command begins, since importing its modules takes seconds, and after it has ended. Not
here: the command (`command.py`).
"""

import sys

from jsae_assets import interrupts


def main() -> int:
    interrupts.end_at_once("Stopped before anything began.")
    from jsae_assets.command import main as command

    interrupts.be_raised()
    interrupts.spare_what_copies_output()
    try:
        return command()
    except KeyboardInterrupt:
        print("\nStopped.")
        return 1
    finally:
        interrupts.end_at_once("")


if __name__ == "__main__":
    sys.exit(main())
