"""`python -m anprompt_peft` is the command `anprompt`."""

import sys

from anprompt_cli import main

if __name__ == "__main__":
    sys.exit(main())
