from cache_teacher.cli import main

raise SystemExit(main())
