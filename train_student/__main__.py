import sys

try:
    from kdcache.training.processes import end_process
    from train_student.cli import main

    end_process(main())
except KeyboardInterrupt:  # before the first command has begun: importing torch takes seconds
    print("train_student: interrupted; nothing was begun", file=sys.stderr)
    sys.exit(130)
