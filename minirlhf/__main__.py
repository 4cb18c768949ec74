"""`python -m minirlhf` is `minirlhf`."""

from minirlhf.cli.main import main

if __name__ == "__main__":
    main()
