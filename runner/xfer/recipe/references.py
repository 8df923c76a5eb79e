"""`${a.b}` as text: what may stand between the braces. The names themselves are looked up in `interpolate`."""

from __future__ import annotations

import re

PLAIN = re.compile(r"\$\{([A-Za-z_][\w-]*(?:\.[\w-]+|\[\d+\])*)\}", re.ASCII)
_RESOLVER = re.compile(r"\$\{\s*([\w.]+)\s*:")


def refused(text: str) -> str | None:
    """Why a text's interpolation is not allowed, or None. Checked before anything reaches OmegaConf, which would call resolvers.

    >>> refused("${target.path}/run-${seed}"), refused("${seed")
    (None, "'${seed' is not a plain interpolation such as ${target.path}")
    """
    if "${" not in text:
        return None
    resolver = _RESOLVER.search(text)
    if resolver:
        return (
            f"'${{{resolver[1]}:…}}' is not allowed: an interpolation names another key, such as ${{target.path}}; "
            "it would copy a value from outside, perhaps a secret, into the bundle"
        )
    if "${" in PLAIN.sub("", text):
        return f"'{text[:60]}' is not a plain interpolation such as ${{target.path}}"
    return None
