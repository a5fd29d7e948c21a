from train_student.cli import main

raise SystemExit(main())
