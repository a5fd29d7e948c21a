import sys

try:
    from cache_teacher.cli import main
    from kdcache.machine.signals import ignore_signals

    code = main()
    ignore_signals()
except KeyboardInterrupt:  # while Python still imports what the command needs
    print("cache_teacher: interrupted; nothing was begun", file=sys.stderr)
    code = 130
sys.exit(code)
