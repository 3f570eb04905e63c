"""Which of the errors that tasks ended with is told."""


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that matters of those that tasks ended with: an interruption before anything else."""
    leaves: list[BaseException] = []
    groups: list[BaseExceptionGroup[BaseException]] = [group]
    while groups:
        for inner in groups.pop(0).exceptions:
            if isinstance(inner, BaseExceptionGroup):
                groups.append(inner)
            else:
                leaves.append(inner)
    return next((leaf for leaf in leaves if not isinstance(leaf, Exception)), leaves[0])
