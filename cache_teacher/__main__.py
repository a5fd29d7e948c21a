import sys

try:
    from cache_teacher.cli import main
    from kdcache.command import ignore_interrupts

    code = main()
    ignore_interrupts()
except KeyboardInterrupt:  # while Python still imports what the command needs
    print("cache_teacher: interrupted; nothing was begun", file=sys.stderr)
    code = 130
sys.exit(code)
