import sys

try:
    from train_student.cli import main

    code = main()
except KeyboardInterrupt:  # before the first command has begun: importing torch takes seconds
    print("train_student: interrupted; nothing was begun", file=sys.stderr)
    code = 130
sys.exit(code)
