import sys

try:
    from train_student.cli import command

    command()
except KeyboardInterrupt:  # while Python still imports what the command needs
    print("train_student: interrupted; nothing was begun", file=sys.stderr)
    sys.exit(130)
