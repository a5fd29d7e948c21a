import sys

try:
    from cache_teacher.cli import main

    code = main()
except KeyboardInterrupt:  # before the first command has begun: importing torch takes seconds
    print("cache_teacher: interrupted; nothing was begun", file=sys.stderr)
    code = 130
sys.exit(code)
