"""The commands of lmk_train."""

import subprocess
import sys


def test_commands_start_without_torch() -> None:
    """`--help` of every command is quick, and lmk_data never needs torch."""
    check = "import sys; import lmk_data.cli, lmk_data.build, lmk_data.dataset; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
    check = "import sys; import lmk_train.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
