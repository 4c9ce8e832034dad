"""The exit status of a command that runs in this process."""


def status_of(main, arguments) -> int:
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as left:
        return left.code
