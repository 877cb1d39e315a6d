"""The command `jsae`, from its first moment to its last.

Here: what Ctrl-C does before the command begins, since importing its modules takes seconds, and after it has ended; the
end of a command whose output nobody reads any more (`jsae --help | head`). Not here: the command (`command.py`).
"""

import os
import sys

from jsae_assets import interrupts


def main() -> int:
    interrupts.end_at_once("Stopped before anything began.")
    from jsae_assets.command import main as command

    interrupts.be_raised()
    interrupts.spare_what_copies_output()
    try:
        try:
            return command()
        finally:  # also after `--help`, which raises SystemExit
            sys.stdout.flush()  # here, where it can still be caught that the reader has gone
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more at its end
        return 1
    except KeyboardInterrupt:
        print("\nStopped.")
        return 1
    finally:
        interrupts.end_at_once("")


if __name__ == "__main__":
    sys.exit(main())
