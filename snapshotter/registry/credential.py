"""What proves who we are."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Credential:
    """What proves who we are; empty strings where there is nothing. Its repr shows no secret.

    `refresh_token` (docker's identitytoken) is exchanged for access tokens; `registry_token` is an access token itself.
    """

    username: str = ""
    password: str = field(default="", repr=False)
    refresh_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)
