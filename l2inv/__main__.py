from l2inv.cli import main

main()
