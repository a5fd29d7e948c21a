import sys

try:
    from train_student.cli import command

    command()
except KeyboardInterrupt:  # before the first command has begun: importing torch takes seconds
    print("train_student: interrupted; nothing was begun", file=sys.stderr)
    sys.exit(130)
