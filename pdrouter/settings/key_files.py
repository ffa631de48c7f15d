"""Keys that stand in files of their own, as Secrets are mounted."""

from pathlib import Path

from pdrouter.settings.combined import SettingInvalid


def read_key(setting: str, path: Path | None) -> bytes:
    """Return the key in a file, without white space around it: editors end files with a line break.

    Args:
        setting: name of the setting that names the file.
        path: the file; None for no key.

    Raises:
        SettingInvalid: there is none in the file.
    """
    if path is None:
        return b""
    try:
        key = path.read_bytes().strip()
    except OSError as error:
        problem = error.strerror or type(error).__name__
        raise SettingInvalid(f"{setting}={path}: {problem}") from None
    if not key:
        raise SettingInvalid(f"{setting}={path}: the file is empty")
    return key
