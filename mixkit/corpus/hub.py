"""Why something cannot be had from the Hugging Face hub, in a few words.

The idea: the hub's client tries again for minutes and then tells a page; we ask once, with a short timeout, and say
the one thing that the user can act on.
"""

from __future__ import annotations

ASK_SECONDS = 10  # timeout of the one question


def reason(error: Exception) -> str:
    """What `error` of the hub's client means for the user."""
    import requests
    from huggingface_hub import errors

    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    if isinstance(error, errors.GatedRepoError):
        return "it is gated: accept its terms on the hub and log in"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "there is no such repository, or it is private"
    if isinstance(error, (requests.ConnectionError, requests.Timeout)):
        return "the hub cannot be reached"
    return (str(error).strip() or type(error).__name__).splitlines()[0]
