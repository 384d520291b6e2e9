"""Errors a user can cause and mend; each message is one sentence that names what is wrong and what to do."""


class UserError(Exception):
    """Something the user gave, or lacks, that the message tells how to put right."""


class MissingArtefact(UserError):
    """An artefact another step makes is not there; the message names the make target that makes it."""


class CorruptArtefact(UserError):
    """A stored file's content is not what its checksum says; the message names the file."""
