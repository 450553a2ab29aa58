"""`lmk-eval` as a module, so that torchrun can start it."""

import sys

from lmk_train.cli import eval_main

if __name__ == "__main__":
    sys.exit(eval_main(sys.argv[1:]))
